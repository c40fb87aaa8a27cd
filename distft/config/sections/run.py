"""The sections of a run's course: what is saved, what is measured, what is watched."""

import re
from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from distft.config.sections.section import Section, problems_of
from distft.runtime.location import locate

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Checkpoint(Section):
    every: PositiveInt = 100
    """Steps between checkpoints; one more is written at the end and on a stop."""
    keep: Annotated[int, Field(ge=2)] = 2
    """Newest checkpoints to keep; the best one is kept besides."""


class Evaluation(Section):
    every: PositiveInt | None = None
    """Steps between evaluations; null: only before the first step and after the last."""
    patience: PositiveInt | None = None
    """Stop after this many evaluations without a better metric; `adapter/` is then the best, not the last."""
    metric: str = "loss"
    """What "best" means: the lowest held-out loss, or the best value of one of the task's metrics."""
    earlier: dict[str, str] = {}
    """Datasets learnt before, by name, measured whole at each evaluation: `forgetting.json` tells what is forgotten."""
    samples: NonNegativeInt = 0
    """Held-out prompts answered before and after training."""
    max_new_tokens: PositiveInt = 48
    """Length of a sample answer."""

    def problems(self) -> Iterator[str]:
        if self.patience is not None and self.every is None:
            got = f"{self.patience} with evaluation.every=null"
            yield f"evaluation.patience: must have evaluations to count, got {got}; set evaluation.every=10"
        for name in self.earlier:
            if not _NAME.fullmatch(name):
                yield (
                    f"evaluation.earlier: names must be letters, digits and . _ -, got {name!r}; rename it, as in "
                    "evaluation.earlier={old: old.jsonl}"
                )

    def missing(self) -> Iterator[str]:
        for name, path in self.earlier.items():
            yield from problems_of(locate, path, f"evaluation.earlier.{name}")


class Runtime(Section):
    hang_after: PositiveFloat | None = 900
    """Seconds without a step after which all ranks tell where they stand and the run ends; null: never."""
