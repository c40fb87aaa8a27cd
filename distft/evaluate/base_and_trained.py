"""A run's base and what it trained, measured on the same held-out rows: loss, metrics and replies."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from distft.config.schema import Config
from distft.evaluate import tables
from distft.evaluate.results import Data, Evaluation, Reply
from distft.run.weights import facts_beside, find_weights
from distft.runtime.env import Ranks
from distft.session.held_out import HeldOut, write_files
from distft.session.precompute import precompute
from distft.session.replies import Replies
from distft.session.session import Session
from distft.session.task_data import read_held_out
from distft.task.seam import Scores


@dataclass(frozen=True)
class Measured:
    """One column of the table."""

    scores: Scores
    replies: list[str]


def evaluate(run: Path, config: Config, checkpoint: str | None, ranks: Ranks) -> Evaluation:
    """Measures on the held-out data of `config`; writes `evaluation.json` and prints a table. Every rank calls it.

    Raises ConfigError where there is nothing trained yet, or nothing held out.
    """
    weights = find_weights(run, checkpoint)
    data = read_held_out(config, facts_beside(weights))
    with Session.open(config, ranks, data, logs=run, runs=[run], weights=[weights]) as session:
        precompute(session, data, ["eval"])
        rows, replies = HeldOut.of(session, data), Replies(session, data)
        as_base = nullcontext() if config.adapter.traits.starts_as_base else session.module.without_adapter()
        with as_base:
            base = _measure(rows, replies)
        session.engine.load_trainable_state(session.trained[0].read)
        trained = _measure(rows, replies)
        result = _result(config, weights, rows, replies, base, trained)
        if ranks.is_main:
            file = result.write(run)
            write_files(trained.scores, run)
            tables.print_evaluation(result, file)
    return result


def _measure(rows: HeldOut, replies: Replies) -> Measured:
    scores = rows.score()
    assert scores is not None, "nobody asks an evaluation to stop"
    return Measured(scores, replies.now())


def _result(
    config: Config, weights: Path, rows: HeldOut, replies: Replies, base: Measured, trained: Measured
) -> Evaluation:
    source = config.data.model_dump(mode="json")["eval"] or f"{config.data.eval_fraction:g} of the training data"
    corpus = rows.corpus
    return Evaluation(
        run=config.name,
        weights=str(weights),
        data=Data(source, corpus.digest, corpus.num_documents, corpus.num_targets),
        base=base.scores.numbers,
        trained=trained.scores.numbers,
        samples=[
            Reply(each.prompt, each.reference, each.before, each.after)
            for each in replies.compared(base.replies, trained.replies)
        ],
    )
