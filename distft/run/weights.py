"""Where a run's trained weights are, and what is written beside them."""

import json
from pathlib import Path
from typing import Any

from distft.config.keys import nearest
from distft.errors import ConfigError
from distft.run.damage import MANIFEST, damage
from distft.run.steps import published, step_of


def find_weights(run: Path, wanted: str | None) -> Path:
    """The folder with a run's trained weights: `wanted`, a step or a path; else `adapter/`, else the newest checkpoint.

    Raises ConfigError where there is none, or where it is damaged.
    """
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
    from distft.model.adapter.saved import FACTS  # torch comes with it

    file = weights / FACTS
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
