"""python -m distft.merge: one adapter of several: of runs on the same base, or of one run's checkpoints."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from distft.config.reading.compose import load_run
from distft.config.schema import Config, Section
from distft.errors import ConfigError
from distft.merge.settings import Merge
from distft.run.compatible import check_members
from distft.run.identity import write_config
from distft.run.steps import published, step_of
from distft.run.weights import find_weights
from distft.runtime import log
from distft.runtime.env import Ranks, read_ranks
from distft.runtime.files import whole_folder

# What a run needed for training and a merge does not.
DEFAULTS = ["engine=single", "optim=sgd", "tracking=none", "resume=auto"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+-]{0,127}")


class Command(Section):
    merge: Merge


def main(argv: list[str]) -> None:
    run, config, own = load_run([*DEFAULTS, *argv], Command, program="distft.merge")
    settings = own.merge
    target = Path(settings.to).expanduser()
    others = [Path(other).expanduser() for other in settings.runs]
    problems = [*_problems(config, settings, target, read_ranks()), *check_members(run, others, "merge.runs")]
    if problems:
        raise ConfigError(problems)
    log.start(0)
    from distft.merge import adapters

    with whole_folder(target, alone=True) as folder:
        if others:
            members = [find_weights(each, None) for each in [run, *others]]
            adapter = adapters.combine(config, members, settings, folder)
        else:
            members = _checkpoints(run, settings.checkpoints)
            adapters.average(members, folder)
        place = {"name": target.name, "run_root": str(target.absolute().parent)}
        merged = config.model_copy(update=place | ({"adapter": adapter} if others else {}))
        write_config(folder, merged)
        adapters.describe(run, members, settings, folder)
    print(f"merged   {', '.join(map(str, members))}")
    print(f"written  {target}")
    print(f"next     python -m distft.evaluate run={target}")


def _problems(config: Config, settings: Merge, target: Path, ranks: Ranks) -> Iterator[str]:
    if bool(settings.runs) is (settings.checkpoints is not None):
        yield (
            f"merge.runs: must be set, or merge.checkpoints, and not both, got {settings.runs or 'neither'}; give "
            "merge.runs=[runs/OTHER] or merge.checkpoints=3"
        )
    if settings.runs:
        yield from _adapters_problems(config, settings)
    elif settings.method != Merge.model_fields["method"].get_default() or settings.weights is not None:
        yield "merge.method: belongs to merge.runs; checkpoints of one run are averaged: remove it, and merge.weights"
    if not _NAME.fullmatch(target.name):
        yield f"merge.to: its name must be a run's, letters, digits and . _ = , + -, got {target.name!r}; rename it"
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        yield f"merge.to: must be new or an empty folder, got {target}; give another merge.to="
    parent = next(folder for folder in [target, *target.absolute().parents] if folder.exists())
    if not os.access(parent, os.W_OK):
        yield f"merge.to: must be in a folder that can be written, got {target}; give another merge.to="
    if ranks.world_size > 1:
        yield f"merge: must run as one process, got {ranks.world_size}; start it without torchrun or srun"


def _adapters_problems(config: Config, settings: Merge) -> Iterator[str]:
    traits, count = config.adapter.traits, len(settings.runs) + 1
    if not traits.combines:
        kind = "DoRA's magnitudes" if traits.magnitudes else f"adapter={config.adapter.method}"
        yield f"merge.runs: must be runs of LoRA adapters, got {kind}; average merge.checkpoints= in place of them"
    elif traits.changes_base:
        yield (
            f"merge.runs: must be adapters on the base as it is, got adapter.init={traits.changes_base}, which takes "
            "a part of it away; export them by export.to=adapter"
        )
    if settings.weights is not None and len(settings.weights) != count:
        yield f"merge.weights: must be {count} numbers, one a run, got {len(settings.weights)}; add or remove some"
    if settings.method == "cat" and settings.r is not None:
        yield f"merge.r: belongs to methods that choose a rank, got {settings.r} with cat; use merge.method=svd"
    if not settings.prunes and settings.density != Merge.model_fields["density"].get_default():
        yield f"merge.density: belongs to ties and dare, got {settings.density:g} with {settings.method}; remove it"


def _checkpoints(run: Path, wanted: list[int] | int | None) -> list[Path]:
    """The folders of these steps, each whole. Raises ConfigError."""
    assert wanted is not None
    steps = [step_of(path) for path in published(run / "checkpoints")]
    if isinstance(wanted, int):
        if len(steps) < max(2, wanted):
            raise ConfigError(
                f"merge.checkpoints: must be at least 2 and at most those there are, {len(steps)}, got {wanted}; "
                "keep more by checkpoint.keep="
            )
        wanted = steps[-wanted:]
    if len(set(wanted)) < 2:
        raise ConfigError(f"merge.checkpoints: must be at least two steps, got {wanted}; steps there: {steps}")
    return [find_weights(run, str(step)) for step in dict.fromkeys(wanted)]
