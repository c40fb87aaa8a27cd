"""The checkpoints of a run by step: what their folders are called, which there are, and what their state says."""

import json
from itertools import count
from pathlib import Path
from typing import Any, TypedDict

PREFIX = "step-"


class Position(TypedDict):
    """Where in the data a run stands."""

    seed: int
    step: int
    rows: int
    digest: str
    """Identity of the tokenised data, both splits."""


class State(TypedDict):
    """A checkpoint's `state.json`, as far as it is read here: the loop keeps its progress in it too."""

    step: int
    best_step: int | None
    base: dict[str, Any]
    """Identity of the base model."""
    data: Position
    resumed_from: str | None
    """What `resume` said, where it was a path."""


def folder_name(step: int) -> str:
    return f"{PREFIX}{step:08d}"


def step_of(path: Path) -> int:
    return int(path.name.removeprefix(PREFIX))


def published(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit())


def read_state(path: Path) -> State:
    state: State = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return state


def set_aside(path: Path, why: str) -> Path:
    """Renames a checkpoint so that it is none any more; nothing is deleted."""
    names = (f"{why}-{path.name}{f'.{number}' if number else ''}" for number in count())
    aside = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    path.rename(aside)
    return aside
