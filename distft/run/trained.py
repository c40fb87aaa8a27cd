"""What a run trained: the folder that holds it, and whether the model at hand is the one it was trained on."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from distft.config.keys import nearest, show
from distft.config.resume import rule_of
from distft.config.schema import Config
from distft.errors import ConfigError

if TYPE_CHECKING:
    from distft.run.checkpoints import TensorFolder


def check_same_model(run: Path, config: Config) -> list[str]:
    """Overrides that would put the trained weights on another model than they were trained on. Imports no torch."""
    saved = yaml.safe_load((run / "config.yaml").read_text())
    return [
        f"{section}.{key}: must be what the run trained with, {show(before)}, got {show(now)}; remove it"
        for section in ("task", "model", "adapter")
        for key, now in getattr(config, section).model_dump(mode="json").items()
        if (before := saved.get(section, {}).get(key, now)) != now
        and rule_of(f"{section}.{key}")[0] == "refused"
        and f"{section}.{key}" != "model.source"  # a base may move; its content is compared
    ]


def check_same_base(run: Path, identity: dict[str, Any]) -> None:
    """Raises ConfigError where the base's content is not what the run began with."""
    began = json.loads((run / "environment.json").read_text())["base"]
    if began["digest"] != identity["digest"]:
        raise ConfigError(
            f"model.source: content must be what the run was trained on, {began['source']} with digest "
            f"{began['digest'][:12]}, got {identity['source']} with digest {identity['digest'][:12]}; "
            "put it back, or give its new place as model.source="
        )


SHAPE = ("method", "targets", "modules_to_save", "dora")


def check_members(run: Path, others: Iterable[Path], key: str, shape: Iterable[str] = SHAPE) -> Iterator[str]:
    """What keeps the adapters of `others` from being put together with that of `run`. Imports no torch.

    They must be on the same base, by its digest, be trained for the same task, and agree in `shape`, keys of `adapter`.
    """
    ours = yaml.safe_load((run / "config.yaml").read_text())
    for other in others:
        if not (other / "config.yaml").is_file() or not (other / "environment.json").is_file():
            near = nearest(other.name, [path.parent.name for path in sorted(other.parent.glob("*/config.yaml"))])
            hint = f"did you mean {other.parent / near}?" if near and near != other.name else "give a run's folder"
            yield f"{key}: must be folders of runs that were begun, got {other}; {hint}"
            continue
        theirs = yaml.safe_load((other / "config.yaml").read_text())
        base, theirs_base = (json.loads((each / "environment.json").read_text())["base"] for each in (run, other))
        if base["digest"] != theirs_base["digest"]:
            yield (
                f"{key}: must be adapters on one base, got {theirs_base['source']} with digest "
                f"{theirs_base['digest'][:12]} in {other}, and {base['source']} with {base['digest'][:12]} in {run}; "
                "leave it out"
            )
        differing = [f"adapter.{name}" for name in shape if ours["adapter"].get(name) != theirs["adapter"].get(name)]
        differing += ["task"] if ours.get("task") != theirs.get("task") else []
        if differing:
            yield (
                f"{key}: must be adapters of one shape and task, got another {', '.join(differing)} in {other} than in "
                f"{run}; leave it out"
            )


def adapter_of(run: Path) -> dict[str, Any]:
    """The adapter's section in a run's config."""
    section: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text())["adapter"]
    return section


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


def find_weights(run: Path, wanted: str | None) -> Path:
    """The folder with a run's trained weights: `wanted`, a step or a path; else `adapter/`, else the newest checkpoint.

    Raises ConfigError where there is none, or where it is damaged.
    """
    from distft.run.checkpoints import MANIFEST, damage, published, step_of

    checkpoints = {step_of(path): path for path in published(run / "checkpoints")}
    if wanted is None:
        if (run / "adapter").is_dir():
            return run / "adapter"
        whole = next((path for path in reversed(checkpoints.values()) if not damage(path)), None)
        if whole is not None:
            return whole
        raise ConfigError(
            f"run: must have a trained adapter or a checkpoint, got {run} without either; "
            "let it train until its first checkpoint"
        )
    path = checkpoints.get(int(wanted)) if wanted.isdigit() else Path(wanted).expanduser()
    if path is None or not path.is_dir():
        steps = [str(step) for step in checkpoints]
        near = nearest(wanted, steps)
        hint = f"did you mean {near}? " if near and near != wanted else ""
        raise ConfigError(
            f"checkpoint: must be a step or a checkpoint's folder, got {wanted}; "
            f"{hint}steps there: {', '.join(steps) or 'none'}"
        )
    if (path / MANIFEST).exists() and (problems := damage(path)):
        raise ConfigError(f"checkpoint: must be whole, got {path}: {'; '.join(problems)}; take another step")
    return path


def facts_beside(weights: Path) -> dict[str, Any] | None:
    """What the task learnt of the data that these weights were trained on, label names for example; null: nothing."""
    file = weights / "task.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def open_weights(folder: Path, stem: str, trains: Iterable[str], beside: Iterable[str] = ()) -> "TensorFolder":
    """The tensors in `folder`. Raises ConfigError where they are not those that train, with those `beside` them."""
    from distft.run.checkpoints import TensorFolder

    tensors = TensorFolder(folder, stem)
    if differing := sorted(set(tensors.names) ^ {*trains, *beside}):
        raise ConfigError(
            f"checkpoint: {folder} must hold exactly the parameters that the run trains, {len(differing)} differ: "
            f"{', '.join(differing[:3])}; it belongs to another run, or is incomplete"
        )
    return tensors
