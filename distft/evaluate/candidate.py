"""What is measured beside others: trained weights on the base, or the base itself. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Candidate:
    """A column of weights on the base; null: the base itself."""

    name: str
    weights: Path | None
    run: Path | None = None
