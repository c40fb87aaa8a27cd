"""Whether a model, a base or another run is what a run was trained with."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from distft.config.keys import nearest, show
from distft.config.resume import rule_of
from distft.config.schema import Config
from distft.errors import ConfigError
from distft.run.identity import CONFIG, ENVIRONMENT, Environment, read_config, same_base
from distft.run.weights import facts_beside

SHAPE = ("method", "targets", "modules_to_save", "dora")


def check_same_model(run: Path, config: Config) -> list[str]:
    """Overrides that would put the trained weights on another model than they were trained on. Imports no torch."""
    saved = read_config(run)
    return [
        f"{section}.{key}: must be what the run trained with, {show(before)}, got {show(now)}; remove it"
        for section in ("task", "model", "adapter")
        for key, now in getattr(config, section).model_dump(mode="json").items()
        if (before := saved.get(section, {}).get(key, now)) != now and rule_of(f"{section}.{key}")[0] == "refused"
    ]


def check_same_base(run: Path, identity: dict[str, Any]) -> None:
    """Raises ConfigError where the base's content is not what the run began with."""
    began = Environment.read(run).base
    if not same_base(began, identity):
        raise ConfigError(
            f"model.source: content must be what the run was trained on, {began['source']} with digest "
            f"{began['digest'][:14]}, got {identity['source']} with digest {identity['digest'][:14]}; "
            "put it back, or give its new place as model.source="
        )


def check_members(run: Path, others: Iterable[Path], key: str, shape: Iterable[str] = SHAPE) -> Iterator[str]:
    """What keeps the adapters of `others` from being put together with that of `run`. Imports no torch.

    They must be on the same base, by its digest, be trained for the same task, and agree in `shape`, keys of `adapter`.
    Raises ConfigError where a run's own files cannot be read.
    """
    ours = read_config(run)
    for other in others:
        if not (other / CONFIG).is_file() or not (other / ENVIRONMENT).is_file():
            near = nearest(other.name, [path.parent.name for path in sorted(other.parent.glob(f"*/{CONFIG}"))])
            hint = f"did you mean {other.parent / near}?" if near and near != other.name else "give a run's folder"
            yield f"{key}: must be folders of runs that were begun, got {other}; {hint}"
            continue
        theirs = read_config(other, key)
        base, theirs_base = Environment.read(run).base, Environment.read(other, key).base
        if not same_base(base, theirs_base):
            yield (
                f"{key}: must be adapters on one base, got {theirs_base['source']} with digest "
                f"{theirs_base['digest'][:14]} in {other}, and {base['source']} with {base['digest'][:14]} in {run}; "
                "leave it out"
            )
        differing = [f"adapter.{name}" for name in shape if ours["adapter"].get(name) != theirs["adapter"].get(name)]
        differing += ["task"] if ours.get("task") != theirs.get("task") else []
        if differing:
            yield (
                f"{key}: must be adapters of one shape and task, got another {', '.join(differing)} in {other} than in "
                f"{run}; leave it out"
            )


def require_same_facts(members: Iterable[Path], key: str) -> None:
    """Raises ConfigError where weights were trained for other labels than the first ones."""
    first, *others = members
    for other in others:
        if facts_beside(other) != facts_beside(first):
            ours, theirs = facts_beside(first) or {}, facts_beside(other) or {}
            keys = [name for name in {**ours, **theirs} if name != "counts" and ours.get(name) != theirs.get(name)]
            if keys:
                raise ConfigError(
                    f"{key}: must be trained for the same {', '.join(keys)}, got {theirs.get(keys[0])} in {other} and "
                    f"{ours.get(keys[0])} in {first}; leave it out"
                )
