"""Labelled rows: those that are asked about, and those that shots are drawn from."""

import json
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distft.config import schema
from distft.data import source
from distft.data.document import Malformed, question_hash, short
from distft.data.loader import permutation
from distft.data.source import Resolved
from distft.errors import ConfigError
from distft.evaluate.fewshot.prompt_template import Prompt, Row


@dataclass(frozen=True)
class Labelled:
    held_out: list[Row]
    pool: list[Row]
    """None of them asks what a held-out row asks."""
    labels: list[str]
    truth: np.ndarray
    """int64: each held-out row's label, as a place in `labels`."""


def read(data: schema.Data, prompt: Prompt, needs_pool: bool) -> Labelled:
    """The rows of `data.eval`, or the share of `data.train` that a run holds out; shots come from the rest of `train`.

    Where the prompt shows the columns that a task reads, the share is the one that is held out in its training.
    Raises ConfigError with every problem.
    """
    formats = {"labelled": (*prompt.columns, prompt.label)}
    train, problems = (
        source.resolve(data.train, "data.train", _no_digest) if _reads_train(data, needs_pool) else ([], [])
    )
    held_out, more = source.resolve(data.eval, "data.eval", _no_digest) if data.eval else ([], [])
    if problems or more:
        raise ConfigError(problems + more)
    splits: dict[str, list[Row]] = {"train": [], "eval": []}
    for name, resolved in (("train", train), ("eval", held_out)):
        rows, faults = _rows(resolved, data, formats, prompt)
        splits[name] = rows
        problems += faults
    if problems:
        raise ConfigError(problems)
    pool, asked = splits["train"], splits["eval"]
    if not data.eval:
        limit = data.eval_fraction * 2.0**64
        asked = [row for row in pool if question_hash(_question(row, prompt)) < limit]
    if data.deduplicate:
        asked = list({json.dumps(row, sort_keys=True, default=str): row for row in asked}.values())
    if not asked:
        raise ConfigError("data.eval: must be set where nothing is held out; give data.eval=my.jsonl")
    seen = {_question(row, prompt) for row in asked}
    pool = [row for row in pool if _question(row, prompt) not in seen]
    if needs_pool and not pool:
        raise ConfigError("shots: must have rows to be drawn from that are not held out, got none; give data.train=")
    labels = sorted(prompt.words or {_label(row, prompt) for row in [*asked, *pool]})
    places = {label: i for i, label in enumerate(labels)}
    return Labelled(asked, pool, labels, np.array([places[_label(row, prompt)] for row in asked], np.int64))


def draw(labelled: Labelled, prompt: Prompt, count: int, seed: int) -> list[Row]:
    """`count` shots: one of each label in turn, in an order of the seed's. Raises ConfigError where there are fewer."""
    if count > len(labelled.pool):
        raise ConfigError(
            f"shots: must be at most the rows to draw from, {len(labelled.pool)}, got {count}; give more data.train="
        )
    order = permutation(seed, 0, len(labelled.pool)).tolist()
    turns: dict[str, int] = defaultdict(int)
    ranked = []
    for place, number in enumerate(order):
        label = _label(labelled.pool[number], prompt)
        ranked.append((turns[label], place, number))
        turns[label] += 1
    chosen = sorted(ranked)[:count]
    return [labelled.pool[number] for _, _, number in sorted(chosen, key=lambda entry: entry[1])]


def _reads_train(data: schema.Data, needs_pool: bool) -> bool:
    return needs_pool or not data.eval


def _no_digest(file: Path) -> str:
    return ""  # nothing of these rows is cached


def _rows(
    resolved: list[Resolved], data: schema.Data, formats: dict[str, tuple[str, ...]], prompt: Prompt
) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="distft-") as scratch:
        parts, problems = source.open_parts(resolved, None, formats, Path(scratch))
        for part in parts:
            faults = []
            for number, row in enumerate(part.table.read(0, len(part.table))):
                wrong = str(row) if isinstance(row, Malformed) else _fault(row, prompt)
                if wrong:
                    faults.append(f"{part.key}: {part.table.place(number)}: {wrong}")
                else:
                    assert isinstance(row, dict)
                    rows.append(row)
            problems += faults[:5] + ([f"{part.key}: {len(faults) - 5} more such rows"] if len(faults) > 5 else [])
    return rows, problems


def _fault(row: Row, prompt: Prompt) -> str | None:
    missing = [name for name in (*prompt.columns, prompt.label) if row.get(name) is None]
    if missing:
        return f"must have {' and '.join(map(repr, missing))}, got {sorted(row)}"
    label: Any = row[prompt.label]
    if not isinstance(label, str | int | bool):
        return f"{prompt.label!r} must be one class, got {short(label)}"
    if prompt.words and str(label) not in prompt.words:
        return f"{prompt.label!r} must be a label of answers.words ({', '.join(prompt.words)}), got {short(label)}"
    return None


def _label(row: Row, prompt: Prompt) -> str:
    return str(row[prompt.label])


def _question(row: Row, prompt: Prompt) -> str:
    """As the readers of tasks have it: in lower case with single spaces."""
    return " ".join(" ".join(str(row[name]) for name in prompt.columns).lower().split())
