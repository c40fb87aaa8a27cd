"""What is measured on held-out rows: each row once over all ranks, each target weighing the same."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distft.data.corpus import Corpus
from distft.data.loader import Batch
from distft.errors import ConfigError
from distft.runtime.files import write_whole
from distft.session.session import Session
from distft.session.task_data import TaskData
from distft.task.seam import Scores

MOST = 700.0
"""The largest loss whose perplexity is a float."""


@dataclass(frozen=True)
class Predictions:
    """What a model makes of the held-out rows."""

    numbers: dict[str, float]
    outputs: dict[int, Any]
    """By document, as the task's module gave them, on rank 0; none where the task has no metrics."""


@dataclass(frozen=True)
class HeldOut:
    """The held-out rows, this rank's share of them, and the task that judges what a model makes of them.

    All ranks call every method, and get the same numbers; outputs and files are rank 0's.
    """

    session: Session
    data: TaskData
    corpus: Corpus
    batches: list[Batch]
    """Equally many on every rank."""
    has_metrics: bool

    @classmethod
    def of(cls, session: Session, data: TaskData) -> "HeldOut":
        """What `data` holds out. Raises ConfigError where `evaluation.metric` is none of those for this data."""
        corpus = data.prepared.eval
        assert corpus is not None, "nothing is held out"
        metrics, metric = data.task.metrics(data.facts), session.config.evaluation.metric
        if metric not in ("loss", *metrics):
            raise ConfigError(
                f"evaluation.metric: must be one of loss, {', '.join(metrics)} for this data, got {metric}; "
                "set evaluation.metric=loss"
            )
        return cls(session, data, corpus, session.batches(corpus, data.pad_id), bool(metrics))

    def score(self) -> Scores | None:
        """`loss`, the mean over all ranks' targets, and the task's metrics; None where a rank was asked to stop."""
        predictions = self.predict()
        return None if predictions is None else self.judge(predictions)

    def predict(self) -> Predictions | None:
        """The loss and the model's outputs; None where a rank was asked to stop."""
        group, stop = self.session.group, self.session.stop
        loss, outputs = 0.0, dict[int, Any]()
        for batch in self.batches:
            value, made = self.session.engine.evaluate(batch)
            loss += value.item()
            outputs.update(zip(batch.documents, made, strict=self.has_metrics))
            if group.any(stop.is_set):
                return None
        total, targets = group.table(loss, sum(batch.num_targets for batch in self.batches)).sum(0).tolist()
        shares = group.to_main(outputs) if self.has_metrics else []
        everyone = {number: output for share in shares for number, output in share.items()}
        numbers = {"loss": total / max(1.0, targets)}
        if self.session.config.task.traits.token_loss:
            numbers["perplexity"] = math.exp(min(numbers["loss"], MOST))
        return Predictions(numbers, everyone)

    def judge(self, predictions: Predictions) -> Scores:
        """The numbers of the predictions, and the task's metrics of their outputs."""
        if not self.has_metrics:
            return Scores(predictions.numbers)
        found, group = Scores({}), self.session.group
        if group.ranks.is_main:
            assert len(predictions.outputs) == self.corpus.num_documents, "a held-out document was left out"
            found = self.data.task.scores(predictions.outputs, self.corpus, self.data.facts)
        return Scores({**predictions.numbers, **group.from_main(found.numbers)}, found.files)


def write_files(scores: Scores, folder: Path) -> None:
    """The evaluation's pages, each replaced whole."""
    for name, text in scores.files.items():
        write_whole(folder / name, text)
