"""distft.evaluate ensemble=: adapters of several runs on one base, each measured, and the mean of what they say."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distft.config.schema import Config
from distft.evaluate import tables
from distft.evaluate.member import Member
from distft.evaluate.results import Ensemble
from distft.run.compatible import require_same_facts
from distft.run.weights import facts_beside
from distft.runtime.env import Ranks
from distft.session.held_out import HeldOut, Predictions, write_files
from distft.session.session import Session
from distft.session.task_data import read_held_out


def evaluate(config: Config, members: list[Member], run: Path, ranks: Ranks) -> Ensemble:
    """Every member on the held-out data of `config`, and their mean; writes `ensemble.json` into `run`.

    Every rank calls it. Raises ConfigError where the members differ in base, shape or labels, or give no probabilities.
    """
    runs, folders = [each.run for each in members], [each.weights for each in members]
    require_same_facts(folders, "ensemble")
    data = read_held_out(config, facts_beside(folders[0]))
    with Session.open(config, ranks, data, runs=runs, weights=folders) as session:
        rows = HeldOut.of(session, data)
        numbers: dict[str, dict[str, float]] = {}
        outputs: list[dict[int, np.ndarray]] = []
        for member, weights in zip(members, session.trained, strict=True):
            session.engine.load_trainable_state(weights.read)
            predictions = rows.predict()
            assert predictions is not None, "nobody asks an evaluation to stop"
            outputs.append(predictions.outputs)
            numbers[member.name] = rows.judge(predictions).numbers
        mean = {i: average([each[i] for each in outputs], data.facts["kind"]) for i in outputs[0]}
        scores = rows.judge(Predictions({}, mean))
        result = Ensemble(
            members={each.name: str(each.weights) for each in members},
            documents=rows.corpus.num_documents,
            numbers={**numbers, "ensemble": scores.numbers},
        )
        if ranks.is_main:
            file = result.write(run)
            write_files(scores, run)
            tables.print_ensemble(result)
            print(f"written   {file}")
    return result


def average(logits: Sequence[np.ndarray], kind: str) -> np.ndarray:
    """Logits of the members' mean probabilities [classes]; of values, the mean value."""
    stacked = np.stack(logits).astype(np.float64)
    if kind == "regression":
        return stacked.mean(0)
    if kind == "multi_label":  # log(p / (1 - p)), both by a stable log-sigmoid
        yes, no = (-np.logaddexp(0, sign * stacked) for sign in (-1, 1))
        return np.logaddexp.reduce(yes, 0) - np.logaddexp.reduce(no, 0)
    chances = stacked - np.logaddexp.reduce(stacked, 1, keepdims=True)
    return np.logaddexp.reduce(chances, 0) - np.log(len(logits))
