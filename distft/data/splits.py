"""Which documents are trained on and which are held out, and what became of the other rows."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from distft.config import schema
from distft.data import corpus
from distft.data.corpus import Counts
from distft.data.document import Reader
from distft.data.source import Part
from distft.data.tokenise import SplitRule
from distft.errors import ConfigError

NUM_PROMPTS = 8


@dataclass(frozen=True)
class Written:
    rows: np.ndarray
    """tokenise.ROW of every row of every part."""
    documents: np.ndarray
    """corpus.DOCUMENT of every document of every row."""
    reasons: list[str]
    digest: str


def write_splits(
    folder: Path, parts: list[Part], rule: SplitRule, written: Written, data: schema.Data, reader: Reader
) -> None:
    """Which documents are trained on and which are held out, and what became of the others."""
    rows = written.rows
    held_out = rows["part"] >= rule.num_train_parts
    if data.eval_fraction:
        held_out = held_out | (rows["prompt"] < data.eval_fraction * 2.0**64)
    replayed = (rows["part"] >= rule.num_new) & (rows["part"] < rule.num_train_parts)
    kept = rows["documents"] > 0
    first_document = np.cumsum(rows["documents"]) - rows["documents"]
    weights = np.array([part.weight for part in parts])
    splits = {"train": ~held_out}
    if data.eval or data.eval_fraction:
        splits["eval"] = held_out & ~replayed
    prompts: list[list[dict]] = []
    for name, in_split in splits.items():
        chosen = np.flatnonzero(in_split & kept)
        unique = _first_of_each(rows["identity"][chosen]) if data.deduplicate else np.arange(len(chosen))
        dropped = Counter(written.reasons[reason] for reason in rows["reason"][in_split & ~kept])
        counts = Counts(
            rows=int(in_split.sum()),
            duplicates=len(chosen) - len(unique),
            truncated=int(rows["truncated"][chosen[unique]].sum()),
            dropped=dict(dropped.most_common()),
        )
        chosen = chosen[unique]
        copies = _copies(rows[chosen], weights) if name == "train" else np.ones(len(chosen), np.int64)
        if name == "train" and rule.num_replayed:
            counts, copies = _mixed(rows[chosen], replayed[chosen], copies, counts, data)
        chosen_rows = np.repeat(chosen, copies)
        index = _ranges(first_document[chosen_rows], rows["documents"][chosen_rows])
        if not len(index):
            raise ConfigError(_nothing_left(name, counts, data))
        # Label names are no part of the labels' bytes: renamed classes would be another run's.
        facts = json.dumps(reader.facts, sort_keys=True).encode() if reader.facts else b""
        digest = hashlib.sha256(written.digest.encode() + written.documents[index].tobytes() + facts).hexdigest()
        corpus.save_split(folder, name, index, counts, digest)
        if name == "eval":
            prompts = _sample_prompts(parts, rows[chosen], reader)
    (folder / "prompts.json").write_text(json.dumps(prompts, ensure_ascii=False, indent=1), encoding="utf-8")


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """int64: start, start + 1, ... of each, end to end."""
    before = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum(), dtype=np.int64) + np.repeat(starts - before, lengths)


def _first_of_each(identities: np.ndarray) -> np.ndarray:
    _, first = np.unique(identities, axis=0, return_index=True)
    return np.sort(first)


def _copies(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How often each row stands in an epoch: its source's weight, a fraction of it by the document's hash."""
    weight = weights[rows["part"]]
    share = rows["identity"][:, 1] / 2.0**64
    return (np.floor(weight) + (share < weight % 1)).astype(np.int64)


def _mixed(
    rows: np.ndarray, replayed: np.ndarray, copies: np.ndarray, counts: Counts, data: schema.Data
) -> tuple[Counts, np.ndarray]:
    """`copies` with those of older rows changed, so that their sum is the share of an epoch that was asked for.

    Each is taken equally often; what is left over goes to the lowest hashes. Raises ConfigError where no row is left.
    """
    older = np.repeat(np.flatnonzero(replayed), copies[replayed])
    new = int(copies[~replayed].sum())
    wanted = max(1, round(new * data.replay_share / (1 - data.replay_share)))
    if not len(older):
        reasons = (
            "; ".join(f"{number} rows: {reason}" for reason, number in counts.dropped.items()) or "all are held out"
        )
        raise ConfigError(f"data.replay: at least one row must be left to replay, got none ({reasons}); give more rows")
    passes, rest = divmod(wanted, len(older))
    taken = np.full(len(older), passes)
    taken[np.argsort(rows["identity"][older, 0], kind="stable")[:rest]] += 1
    mixed = np.where(replayed, 0, copies)
    np.add.at(mixed, older, taken)
    return replace(counts, replayed=wanted), mixed


def _nothing_left(name: str, counts: Counts, data: schema.Data) -> str:
    if name == "eval" and data.eval is None:
        return (
            f"data.eval_fraction: must hold out at least one row, got {data.eval_fraction} of {counts.rows} rows"
            f" in that split; raise it, or set it to 0"
        )
    reasons = "; ".join(f"{number} rows: {reason}" for reason, number in counts.dropped.items()) or "none was kept"
    return (
        f"data.{name}: at least one row must be left with a supervised token, got 0 of {counts.rows} ({reasons});"
        f" see data.loss_on ({data.loss_on}), data.format, data.max_length ({data.max_length}) and the chat template"
    )


def _sample_prompts(parts: list[Part], rows: np.ndarray, reader: Reader) -> list[list[dict]]:
    """The chats with the lowest prompt hashes, cut after their first reply."""
    prompts: list[list[dict]] = []
    seen = set()
    for row in rows[np.argsort(rows["prompt"], kind="stable")]:
        part = parts[row["part"]]
        if len(prompts) == NUM_PROMPTS or part.format not in reader.chat_formats:
            continue
        raw = next(part.table.read(int(row["row"]), int(row["row"]) + 1))
        assert isinstance(raw, dict), "it was one when it was tokenised"
        messages = reader.chat(raw, part.format)
        if row["prompt"] in seen or messages is None:
            continue
        seen.add(row["prompt"])
        reply = next(i for i, m in enumerate(messages) if m["role"] == "assistant")
        if reply and isinstance(messages[reply].get("content"), str):
            prompts.append(messages[: reply + 1])
    return prompts
