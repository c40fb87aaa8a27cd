"""Runs that are measured side by side. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Member:
    """A run with the folder of its weights, by the name that it has in a table."""

    name: str
    run: Path
    weights: Path
