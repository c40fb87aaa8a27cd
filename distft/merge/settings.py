"""The keys of `python -m distft.merge`. Imports no torch."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from distft.config.schema import Section
from distft.config.sections.section import Fraction


class Merge(Section):
    runs: list[str] = []
    """Folders of other runs on the same base, whose adapters are combined with this run's."""
    checkpoints: list[NonNegativeInt] | PositiveInt | None = None
    """Steps of this run whose weights are averaged; a number: the newest so many."""
    method: Literal[
        "linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd"
    ] = "linear"
    """How adapters are combined (PEFT's names): `linear` adds A and B each, `cat` and `svd` add their products B A, as
    one adapter of all ranks or its best approximation; TIES (arXiv:2306.01708), DARE (arXiv:2311.03099)."""
    weights: list[float] | None = None
    """One a run, this run's first; null: equal, with sum 1."""
    density: Fraction = 0.5
    """Of `ties` and `dare`: the share of values that is kept."""
    r: PositiveInt | None = None
    """Rank that `svd` methods end with; null: the largest of the runs."""
    seed: NonNegativeInt = 0
    """Draws what `dare` drops."""
    to: str
    """The folder to make: a run folder with the merged adapter, for distft.evaluate and distft.export."""
