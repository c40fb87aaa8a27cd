"""python -m distft.export: what a run trained as a folder for others, read back and compared before it counts."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from distft.config.reading.compose import load_run
from distft.config.schema import Config, Section
from distft.errors import ConfigError
from distft.run.compatible import check_same_model
from distft.run.weights import facts_beside, find_weights
from distft.runtime import log
from distft.runtime.env import Ranks, read_ranks
from distft.runtime.files import whole_folder

if TYPE_CHECKING:
    from distft.session.parity import ParityReport

# What a run needed for training and an export does not. With `export.path` set, what may be missing is `export.to`.
DEFAULTS = ["engine=single", "optim=sgd", "tracking=none", "resume=auto", "export.path=null"]


class Export(Section):
    to: Literal["merged", "adapter"]
    """`merged`: a model of its own that transformers loads; `adapter`: a PEFT adapter for the plain base."""
    path: str | None = None
    """Folder to make; null: `exports/merged` or `exports/adapter` in the run folder."""
    checkpoint: str | None = None
    """A step or a checkpoint's folder; null: the run's `adapter/`, or its newest checkpoint."""
    dtype: Literal["bfloat16", "float32"] | None = None
    """How a merged model's weights are stored; null: as `model.dtype`."""


class Command(Section):
    export: Export


def main(argv: list[str]) -> None:
    run, config, own = load_run([*DEFAULTS, *argv], Command, program="distft.export")
    settings = own.export
    target = Path(settings.path).expanduser() if settings.path else run / "exports" / settings.to
    problems = [*check_same_model(run, config), *_problems(config, settings, target, read_ranks())]
    if problems:
        raise ConfigError(problems)
    log.start(0)
    weights = find_weights(run, settings.checkpoint)
    report = export(run, config, settings, weights, target)
    _show(settings, weights, target, report)


def export(run: Path, config: Config, settings: Export, weights: Path, target: Path) -> "ParityReport":
    """Writes `target` from the trained `weights` and reads it back; it is there only if both models agree.

    One process. Raises DistftError where they do not agree, ConfigError where the run's base is not there.
    """
    from distft.export import formats
    from distft.session import parity
    from distft.session.whole import load_trained, tokenizer_of

    tokenizer = tokenizer_of(run, config)
    rows = parity.check_rows(config, tokenizer, facts_beside(weights))
    trained = load_trained(run, config, weights)
    with whole_folder(target, alone=True) as folder:  # what a killed export left goes at once: it is a whole model
        if settings.to == "merged":
            return formats.write_merged(trained, config, settings.dtype or config.model.dtype, tokenizer, folder, rows)
        return formats.write_adapter(trained, config, weights, tokenizer, folder, rows)


def _problems(config: Config, settings: Export, target: Path, ranks: Ranks) -> Iterator[str]:
    adapter, traits = config.adapter, config.adapter.traits
    if settings.to == "adapter" and traits.own_weights:
        yield "export.to: must be merged where the model's own weights trained, got adapter; use export.to=merged"
    elif settings.to == "adapter" and not traits.is_peft:
        yield (
            f"export.to: must be a form that others read, got adapter: PEFT has no {adapter.method} adapters; the "
            f"run's own adapter/ loads with distft.model.adapter.{adapter.method}.load"
        )
    if settings.to == "merged" and traits.unmergeable:
        yield (
            f"export.to: must be adapter with adapter.method={adapter.method}, got merged: "
            f"{traits.unmergeable}; use the run's own adapter/"
        )
    if settings.to == "adapter" and traits.changes_base and config.model.quantization != "none":
        yield (
            f"export.to: must be merged, got adapter: with adapter.init={traits.changes_base} the run quantised what "
            "that left of the base, and no other NF4 base equals it; use export.to=merged"
        )
    if settings.to == "adapter" and settings.dtype is not None:
        yield f"export.dtype: belongs to export.to=merged, got {settings.dtype} with adapter; remove it"
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        yield f"export.path: must be new or an empty folder, got {target}; remove it, or give another export.path="
    parent = next(folder for folder in [target, *target.absolute().parents] if folder.exists())
    if not os.access(parent, os.W_OK):
        yield f"export.path: must be in a folder that can be written, got {target}; give another export.path="
    if ranks.world_size > 1:
        yield f"export: must run as one process, got {ranks.world_size}; start it without torchrun or srun"


def _show(settings: Export, weights: Path, target: Path, report: "ParityReport") -> None:
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    how = f'{report.auto_class}.from_pretrained("{target}")'
    if settings.to == "adapter":
        how = f'PeftModel.from_pretrained(base, "{target}")'
    print(f"weights  {weights}")
    print(f"written  {target} ({size / 1e6:,.1f} MB)")
    for line in report.lines():
        print(f"checked  {line}")
    print(f"load     {how}")
