"""distft.evaluate ensemble=: adapters of several runs on one base, each measured, and the mean of what they say."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from distft.config.schema import Config
from distft.evaluate.fewshot.compare import Candidate
from distft.run.compatible import require_same_facts
from distft.run.weights import facts_beside
from distft.runtime import log
from distft.runtime.env import Ranks

RESULT = "ensemble.json"


def evaluate(config: Config, members: list[Candidate], run: Path, ranks: Ranks) -> dict[str, Any]:
    """Every member on the held-out data of `config`, and their mean; writes `ensemble.json` into `run`.

    Every rank calls it. Raises ConfigError where the members differ in base, shape or labels, or give no probabilities.
    """
    log.start(ranks.global_rank)

    from distft.runtime.group import Group
    from distft.runtime.stop import StopFlag
    from distft.session.held_out import Measured, read_held_out, write_files
    from distft.session.held_out import held_out as hold_out
    from distft.session.session import set_up

    folders = [each.weights for each in members if each.weights is not None]
    require_same_facts(folders, "ensemble")
    tokenizer, task, prepared, documents = read_held_out(config, facts_beside(folders[0]))
    facts, group = prepared.facts, Group(ranks)
    stage = set_up(
        config,
        group,
        task.architecture(facts),
        lambda loaded: task.module(loaded, facts),
        runs=[each.run for each in members if each.run is not None],
        weights=folders,
    )
    engine = stage.engine
    rows = hold_out(documents, task, config, facts, ranks, tokenizer.pad_token_id)
    numbers: dict[str, dict[str, float]] = {}
    outputs: list[dict[int, Any]] = []
    for member, weights in zip(members, stage.trained, strict=True):
        engine.load_trainable_state(weights.read)
        measured = rows.measure(engine, group, StopFlag())
        assert measured is not None, "nobody sets this flag"
        outputs.append(measured.outputs)
        numbers[member.name] = rows.judge(measured, group).numbers
    mean = {i: average([each[i] for each in outputs], facts["kind"]) for i in outputs[0]}
    scores = rows.judge(Measured({}, mean), group)
    result = {
        "members": {each.name: str(each.weights) for each in members},
        "documents": documents.num_documents,
        "numbers": {**numbers, "ensemble": scores.numbers},
        "time": time.time(),
    }
    if ranks.is_main:
        aside = run / f".{RESULT}"
        aside.write_text(json.dumps(result, indent=2, ensure_ascii=False), encoding="utf-8")
        aside.replace(run / RESULT)
        write_files(scores, run)
        _show(result)
        print(f"written   {run / RESULT}")
    group.barrier()
    group.leave()
    return result


def check(config: Config) -> list[str]:
    """Why this run's outputs have no mean. Imports no torch."""
    if config.task.traits.averages:
        return []
    return [
        f"ensemble: must be of runs that give probabilities of labels, task=sequence_classification, got "
        f"{config.task.name}; for a model that writes text give prompt= besides"
    ]


def average(logits: list[np.ndarray], kind: str) -> np.ndarray:
    """Logits of the members' mean probabilities [classes]; of values, the mean value."""
    stacked = np.stack(logits).astype(np.float64)
    if kind == "regression":
        return stacked.mean(0)
    if kind == "multi_label":  # log(p / (1 - p)), both by a stable log-sigmoid
        yes, no = (-np.logaddexp(0, sign * stacked) for sign in (-1, 1))
        return np.logaddexp.reduce(yes, 0) - np.logaddexp.reduce(no, 0)
    chances = stacked - np.logaddexp.reduce(stacked, 1, keepdims=True)
    return np.logaddexp.reduce(chances, 0) - np.log(len(logits))


def _show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    from distft.tracking.console import number, visible

    names = list(dict.fromkeys(name for numbers in result["numbers"].values() for name in numbers))
    table = Table("", *(Column(name, justify="right") for name in names), box=None)
    table.title = f"{result['documents']:,} held-out documents"
    for member, numbers in result["numbers"].items():
        table.add_row(visible(member), *(number(numbers.get(name), ".4f") for name in names))
    Console(highlight=False, markup=False).print(table)
