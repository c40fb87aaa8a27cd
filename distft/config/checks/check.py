"""Checks between sections: combinations that no single key can refuse. Imports no torch.

Each check is a function of the sections it names as its parameters, and yields sentences. It runs when all of them
are valid, so that a fault in one section hides no fault between two others. What concerns one section alone it says
itself; what a check must know of an option it asks the option's traits.
"""

import importlib.util
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from distft.config.checks import adapter as check_adapter
from distft.config.checks import data as check_data
from distft.config.checks import engine as check_engine
from distft.config.checks import task as check_task
from distft.config.keys import nearest
from distft.config.schema import AnyEngine, AnyTracking, Model
from distft.config.sections.section import with_control_characters

Check = Callable[..., Iterator[str]]


def check(valid: Mapping[str, Any], *, world_size: int | None = None, here: bool = True) -> list[str]:
    """Every problem within and between the valid sections of a config, given by name.

    `world_size`: None skips what depends on it. `here`: False skips what this machine must have.
    """
    values = {**valid} if world_size is None else {**valid, "world_size": world_size}
    problems = [problem for section in _sections(valid) for problem in section.problems()]
    problems += _run(ANYWHERE, values)
    return [*problems, *check_on_disk(valid), *_run(HERE, values)] if here else problems


def check_on_disk(valid: Mapping[str, Any]) -> list[str]:
    """What is missing on a machine that submits a run: it has the files and packages, and maybe no GPU."""
    missing = [problem for section in _sections(valid) for problem in section.missing()]
    return [*missing, *_run(ON_DISK, valid)]


def _sections(valid: Mapping[str, Any]) -> list[Any]:
    return [value for value in valid.values() if hasattr(value, "problems")]


def _run(checks: Iterable[Check], values: Mapping[str, Any]) -> list[str]:
    problems: list[str] = []
    for one in checks:
        needed = list(inspect.signature(one).parameters)
        if all(name in values for name in needed):
            problems += one(**{name: values[name] for name in needed})
    return problems


def _length(steps: int | None, epochs: float | None) -> Iterator[str]:
    if steps is None and epochs is None:
        yield "steps: must be set, or epochs, got neither; give steps=100 or epochs=1"
    if steps is not None and epochs is not None:
        yield f"steps: must be null beside epochs, got steps={steps} and epochs={epochs:g}; set one of them to null"


def _run_root(run_root: str) -> Iterator[str]:
    if not run_root.strip() or with_control_characters([run_root]):
        yield f"run_root: must be a folder's path without control characters, got {run_root!r}; use run_root=runs"


def _resume_is_there(resume: str) -> Iterator[str]:
    path = Path(resume).expanduser()
    if resume in ("auto", "never") or (path / "manifest.json").is_file():
        return
    near = nearest(resume, ["auto", "never", *map(str, sorted(path.parent.glob("*/")))])
    hint = f"did you mean resume={near}?" if near else "use resume=auto for the newest one"
    yield f"resume: must be auto, never or the folder of a checkpoint, got {resume}; {hint}"


def _packages(engine: AnyEngine, model: Model, tracking: AnyTracking) -> Iterator[str]:
    for key, value, package in (
        ("engine", engine.name, engine.traits.package),
        ("model.quantization", model.quantization, model.package),
        ("tracking", tracking.name, tracking.package),
    ):
        if package and importlib.util.find_spec(package) is None:
            yield f"{key}: {value} must have the package {package}, which is not installed; pip install {package}"


ANYWHERE: tuple[Check, ...] = (
    _length,
    *check_engine.ANYWHERE,
    *check_adapter.ANYWHERE,
    _run_root,
    *check_task.ANYWHERE,
    *check_data.ANYWHERE,
)
ON_DISK: tuple[Check, ...] = (_resume_is_there, _packages, *check_task.ON_DISK)
HERE: tuple[Check, ...] = check_engine.HERE
