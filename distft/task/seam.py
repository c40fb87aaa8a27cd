"""The task seam: what a run reads, the model it makes of the base, and what an evaluation measures.

A task is one file: a class with the verbs of `Task`, and a `TaskModule` with the model and its loss. The loop, the
engines and the checkpoints know no task by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from transformers import PreTrainedTokenizerFast

from distft.config import schema
from distft.data.corpus import Corpus
from distft.data.document import Reader
from distft.model.architecture import Architecture
from distft.model.load import Loaded
from distft.task.module import TaskModule


@dataclass(frozen=True)
class Scores:
    """What an evaluation says."""

    numbers: dict[str, float]
    """By the names in the task's `traits.metrics`, for the evaluation's row."""
    files: dict[str, str] = field(default_factory=dict)
    """Pages for the run folder, by name: a confusion matrix, say."""


class Task(Protocol):
    """What varies with the task. Made of the config alone; the data's facts come in as they are known."""

    def reader(self, tokenizer: PreTrainedTokenizerFast, data: schema.Data, facts: dict[str, Any] | None) -> Reader:
        """Reads rows. `facts`: those of a trained run, in place of what the data at hand would teach."""
        ...

    def architecture(self, facts: dict[str, Any]) -> Architecture:
        """The model to make of the base."""
        ...

    def module(self, loaded: Loaded, facts: dict[str, Any]) -> TaskModule:
        """The model with its loss."""
        ...

    def metrics(self, facts: dict[str, Any]) -> tuple[str, ...]:
        """Those of the section's `traits.metrics` that there are for this data."""
        ...

    def scores(self, outputs: Mapping[int, Any], held_out: Corpus, facts: dict[str, Any]) -> Scores:
        """Metrics of the outputs of `TaskModule.evaluate`, by document of `held_out`; each document stands there once.

        Called on one rank, and only if there are `metrics`.
        """
        ...
