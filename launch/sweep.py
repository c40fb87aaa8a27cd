"""A sweep: a list of points, and a rule that says which come next. Each point is a run in the sweep's folder."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from distft.config.reading.compose import expand_sweep
from distft.errors import ConfigError
from distft.runtime.files import write_whole

FILE = "sweep.yaml"
FIXED = ("name", "run_root", "cluster", "resume")
"""What all points of a sweep have in common: they are one array of jobs in one folder."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    name: str
    """Its folder in the sweep's: the overrides that are its own."""
    overrides: list[str]
    words: list[str]
    """The whole command line."""


def grid(words: Sequence[str]) -> list[Point]:
    """The rule `grid`: every combination at once, and nothing after it. Raises ConfigError."""
    listed = [Point(_name(own), own, all_words) for own, all_words in expand_sweep(words)]
    points = list({point.name: point for point in listed}.values())  # a value given twice is one run
    keys = [override.split("=")[0].lstrip("+~") for override in points[0].overrides]
    if wrong := [key for key in keys if key.split(".")[0] in FIXED]:
        raise ConfigError(f"{key}: must be the same in all points of a sweep; give one value" for key in wrong)
    return points


def write(folder: Path, points: Sequence[Point], rule: str = "grid") -> None:
    listed = [{"name": point.name, "overrides": point.overrides} for point in points]
    write_whole(folder / FILE, yaml.safe_dump({"rule": rule, "points": listed}, sort_keys=False))


def read(folder: Path) -> list[dict[str, Any]]:
    """`name` and `overrides` of each point."""
    points: list[dict[str, Any]] = yaml.safe_load((folder / FILE).read_text(encoding="utf-8"))["points"]
    return points


def _name(overrides: Sequence[str]) -> str:
    """`optim.lr=1e-4,adapter.r=8`, without what a folder's name may not have, and no longer than it may be."""
    text = re.sub(r"[^A-Za-z0-9._=,+-]+", "-", ",".join(override.lstrip("+~") for override in overrides))
    return text if len(text) <= 120 else f"{text[:110]}-{hashlib.sha256(text.encode()).hexdigest()[:9]}"
