"""The keys of `python -m distft.merge`. Imports no torch."""

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt

from distft.config.schema import Section


class Merge(Section):
    runs: list[str] = []
    """Folders of other runs on the same base, whose adapters are combined with this run's."""
    checkpoints: list[NonNegativeInt] | PositiveInt | None = None
    """Steps of this run whose weights are averaged; a number: the newest so many."""
    method: Literal[
        "svd",
        "linear",
        "cat",
        "ties",
        "ties_svd",
        "dare_linear",
        "dare_linear_svd",
        "dare_ties",
        "dare_ties_svd",
        "magnitude_prune",
        "magnitude_prune_svd",
    ] = "svd"
    """How the adapters' changes of each layer are combined (PEFT's names). `svd`, `linear` and `cat` are their weighted
    sum: in as few ranks as hold it, or in all ranks side by side. The others prune first: TIES (arXiv:2306.01708), DARE
    (arXiv:2311.03099). All act on the changes themselves, also those that PEFT has without `_svd`, on factors."""
    weights: list[FiniteFloat] | None = None
    """What each run's change is multiplied by, this run's first; null: equal, with sum 1, which is the mean."""
    density: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Of `ties`, `dare` and `magnitude_prune`: the share of values that is kept; 1: nothing is pruned."""
    r: PositiveInt | None = None
    """Rank that the adapter ends with, but for `cat`. null: the least that loses nothing, or the largest of the runs
    where values are pruned; a smaller one gives the best approximation of that rank."""
    seed: NonNegativeInt = 0
    """Draws what `dare` drops."""
    to: str
    """The folder to make: a run folder with the merged adapter, for distft.evaluate and distft.export."""

    @property
    def prunes(self) -> bool:
        return self.method not in ("svd", "linear", "cat")
