"""The result files of an evaluation. Scripts hold on to their keys; `tables` prints them."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from distft.runtime.files import write_whole

Numbers = dict[str, float]
"""Metrics by name."""


@dataclass(frozen=True)
class Result:
    """What an evaluation found, as it lies in a run folder."""

    FILE: ClassVar[str]

    def content(self) -> dict[str, Any]:
        return asdict(self)

    def write(self, folder: Path) -> Path:
        """Replaces the file in `folder`. Of several evaluations that end at once the last one's stays, whole."""
        file = folder / self.FILE
        write_whole(file, json.dumps(self.content(), indent=2, ensure_ascii=False))
        return file


@dataclass(frozen=True)
class Data:
    """The held-out rows."""

    source: str | list[Any]
    """`data.eval`, or what share of `data.train`."""
    digest: str
    documents: int
    target_tokens: int


@dataclass(frozen=True)
class Reply:
    prompt: str
    reference: str | None
    base: str
    trained: str


@dataclass(frozen=True)
class Evaluation(Result):
    """A run's base and what it trained."""

    FILE = "evaluation.json"

    run: str
    weights: str
    data: Data
    base: Numbers
    trained: Numbers
    samples: list[Reply]
    time: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Ensemble(Result):
    """Several runs on one base, and the mean of their probabilities."""

    FILE = "ensemble.json"

    members: dict[str, str]
    """Folders of weights by name."""
    documents: int
    numbers: dict[str, Numbers]
    """Of each member, and of `ensemble`."""
    time: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Measurement:
    """One model's numbers with one number of shots; `task` is lm-eval's, where there is one."""

    model: str
    shots: int
    numbers: Numbers
    task: str | None = None

    def content(self) -> dict[str, Any]:
        task = {} if self.task is None else {"task": self.task}
        return {"model": self.model, "shots": self.shots, **task, **self.numbers}


@dataclass(frozen=True)
class FewShot(Result):
    """Models asked for labels through a prompt."""

    FILE = "fewshot.json"

    prompt: str
    words: dict[str, str]
    """What is said for each label."""
    scoring: str
    shots_seed: int
    documents: int
    rows: list[Measurement]
    weights: dict[str, str]
    """Folders by model; the base has none."""
    time: float = field(default_factory=time.time)

    def content(self) -> dict[str, Any]:
        return asdict(self) | {"rows": [row.content() for row in self.rows]}


@dataclass(frozen=True)
class LmEval(Result):
    """Models put to tasks of lm-eval."""

    FILE = "lm_eval.json"

    rows: list[Measurement]
    time: float = field(default_factory=time.time)

    def content(self) -> dict[str, Any]:
        return asdict(self) | {"rows": [row.content() for row in self.rows]}
