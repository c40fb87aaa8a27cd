"""What is measured on held-out rows: each row once over all ranks, each target weighing the same."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from distft.config import schema
from distft.data.corpus import Corpus
from distft.data.loader import Batch, evaluation_batches
from distft.data.pack import plan
from distft.data.prepare import Prepared, prepare
from distft.engine.seam import Engine
from distft.errors import ConfigError
from distft.model import load as model
from distft.model.tokenizer import load_tokenizer
from distft.runtime.env import Ranks
from distft.runtime.group import Group
from distft.runtime.stop import StopFlag
from distft.task import build as tasks
from distft.task.seam import Scores, Task

MOST = 700.0
"""The largest loss whose perplexity is a float."""


@dataclass(frozen=True)
class Measured:
    """What a model made of the held-out rows."""

    numbers: dict[str, float]
    outputs: dict[int, Any]
    """By document, as the task's module gave them, on rank 0; none where the task has no metrics."""


@dataclass(frozen=True)
class HeldOut:
    """The held-out rows, this rank's share of them, and the task that judges what a model makes of them."""

    corpus: Corpus
    batches: list[Batch]
    """Equally many on every rank."""
    task: Task
    facts: dict[str, Any]
    has_metrics: bool
    has_perplexity: bool

    def score(self, engine: Engine, group: Group, stop: StopFlag) -> Scores | None:
        """`loss`, the mean over all ranks' targets, and the task's metrics; None where a rank was asked to stop.

        All ranks call it, and get the same numbers; the files are rank 0's.
        """
        measured = self.measure(engine, group, stop)
        return None if measured is None else self.judge(measured, group)

    def measure(self, engine: Engine, group: Group, stop: StopFlag) -> Measured | None:
        """What the model makes of the rows; None where a rank was asked to stop. All ranks get the numbers."""
        loss, outputs = 0.0, dict[int, Any]()
        for batch in self.batches:
            value, made = engine.evaluate(batch)
            loss += value.item()
            outputs.update(zip(batch.documents, made, strict=self.has_metrics))
            if group.any(stop.is_set):
                return None
        total, targets = group.table(loss, sum(batch.num_targets for batch in self.batches)).sum(0).tolist()
        shares = group.to_main(outputs) if self.has_metrics else []
        everyone = {number: output for share in shares for number, output in share.items()}
        numbers = {"loss": total / max(1.0, targets)}
        if self.has_perplexity:
            numbers["perplexity"] = math.exp(min(numbers["loss"], MOST))
        return Measured(numbers, everyone)

    def judge(self, measured: Measured, group: Group) -> Scores:
        """The numbers measured, and the task's metrics of the outputs."""
        if not self.has_metrics:
            return Scores(measured.numbers)
        found = Scores({})
        if group.ranks.is_main:
            assert len(measured.outputs) == self.corpus.num_documents, "a held-out document was left out"
            found = self.task.scores(measured.outputs, self.corpus, self.facts)
        return Scores({**measured.numbers, **group.from_main(found.numbers)}, found.files)


def held_out(
    corpus: Corpus, task: Task, config: schema.Config, facts: dict[str, Any], ranks: Ranks, pad_id: int
) -> HeldOut:
    """This rank's share of the held-out rows, packed or padded as training rows are.

    Raises ConfigError where `evaluation.metric` is none of those that there are for this data.
    """
    metrics = task.metrics(facts)
    if config.evaluation.metric not in ("loss", *metrics):
        raise ConfigError(
            f"evaluation.metric: must be one of loss, {', '.join(metrics)} for this data, got "
            f"{config.evaluation.metric}; set evaluation.metric=loss"
        )
    batches = evaluation_batches(
        corpus,
        plan(corpus.lengths, config.data.max_length, config.data.packing),
        micro_batch=config.data.micro_batch,
        global_rank=ranks.global_rank,
        world_size=ranks.world_size,
        pad_id=pad_id,
    )
    return HeldOut(corpus, batches, task, facts, bool(metrics), config.task.traits.token_loss)


def read_held_out(
    config: schema.Config, facts: dict[str, Any] | None
) -> tuple[PreTrainedTokenizerFast, Task, Prepared, Corpus]:
    """What a trained run is to be measured on, read as it was trained: `facts` are what it learnt of its data.

    Raises ConfigError where nothing is held out.
    """
    model.check(config.model, config.data.max_length)
    tokenizer = load_tokenizer(config.model, config.data.chat_template)
    task = tasks.build(config.task)
    prepared = prepare(config.data, task.reader(tokenizer, config.data, facts))
    if prepared.eval is None:
        raise ConfigError("data.eval: must be set where the run held nothing out; give data.eval=my.jsonl")
    return tokenizer, task, prepared, prepared.eval


def write_files(scores: Scores, folder: Path) -> None:
    """The evaluation's pages, each replaced whole."""
    for name, text in scores.files.items():
        aside = folder / f".{name}"
        aside.write_text(text, encoding="utf-8")
        aside.replace(folder / name)
