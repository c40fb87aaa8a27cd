"""Rows of two answers to one prompt, of which one was chosen, and what is measured of them."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from distft.config import schema
from distft.data.document import (
    Document,
    Layout,
    Malformed,
    Reading,
    Seen,
    Unusable,
    check_columns,
    check_unicode,
    checked,
    short,
)
from distft.task.chat import Template, check_message, prompt_text
from distft.task.seam import Scores

ANSWERS = ("chosen", "rejected")


class Pairs:
    """The reader of prompts with a chosen and a rejected answer.

    A pair is one document of two segments, prompt + chosen and prompt + rejected, which do not see each other but
    stay in one batch. What is supervised are the answers. `data.max_length` holds both segments: of a pair that is too
    long, the longer answer is cut first.
    """

    chat_formats = frozenset({"preference"})
    layout = Layout("next_token", segments=2)

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        data: schema.Data,
        formats: Mapping[str, tuple[str, ...]],
        facts: dict[str, Any] | None = None,
    ):
        self.tokenizer, self.formats, self.facts = tokenizer, formats, facts or {}
        self.max_length, self.cuts = data.max_length, data.too_long == "truncate"
        self.template = Template(tokenizer)

    def options(self) -> dict[str, Any]:
        return self.template.options()

    def learn(self, rows: Iterable[Seen]) -> "Pairs":
        return self

    def question(self, row: dict, format: str) -> str:
        return prompt_text(row, "prompt_completion")

    def chat(self, row: dict, format: str) -> list[dict] | None:
        return row["prompt"] + row["chosen"] if isinstance(row["prompt"], list) else None

    def documents(self, rows: list[dict], format: str) -> list[Reading]:
        results, good = checked(rows, lambda row: self._check(row, format))
        answers = [
            self.template.documents([_completed(rows[i], answer) for i in good], "prompt_completion")
            for answer in ANSWERS
        ]
        for i, chosen, rejected in zip(good, *answers, strict=True):
            results[i] = self._pair(chosen, rejected)
        return results

    def _check(self, row: dict, format: str) -> None:
        columns = self.formats[format]
        check_columns(row, columns)
        for column in columns:
            _check_column(row[column], column)
        if len({type(row[column]) for column in columns}) > 1:
            raise Malformed("'prompt', 'chosen' and 'rejected' must be all strings or all lists of messages")
        if row["chosen"] == row["rejected"]:
            raise Malformed(f"'chosen' and 'rejected' must differ, got {short(row['chosen'])} twice")

    def _pair(self, chosen: Reading, rejected: Reading) -> Reading:
        if not isinstance(chosen, list):
            return chosen
        if not isinstance(rejected, list):
            return rejected
        whole = chosen[0], rejected[0]
        limits = self._limits(*(len(document.ids) for document in whole))
        ids = [document.ids[:limit] for document, limit in zip(whole, limits, strict=True)]
        labels = [document.labels[:limit] for document, limit in zip(whole, limits, strict=True)]
        if not all(part.any() for part in labels):
            return Unusable(f"no token of an answer where a pair has {self.max_length}")
        if np.array_equal(ids[0], ids[1]):
            return Unusable("both answers are the same tokens")
        lengths = tuple(len(part) for part in ids)
        truncated = sum(lengths) < sum(len(document.ids) for document in whole)
        return [Document(np.concatenate(ids), np.concatenate(labels), lengths, targets=1, truncated=truncated)]

    def _limits(self, chosen: int, rejected: int) -> tuple[int, int]:
        """How many tokens of each segment are kept."""
        room = self.max_length
        if not self.cuts or chosen + rejected <= room:
            return chosen, rejected
        shorter = min(chosen, rejected, room // 2)
        return (shorter, room - shorter) if chosen < rejected else (room - shorter, shorter)


def margin_scores(outputs: Mapping[int, float]) -> Scores:
    """The mean margin, and as accuracy the share of pairs whose chosen answer is ahead."""
    margins = np.array([outputs[i] for i in sorted(outputs)])
    return Scores({"margin": float(margins.mean()), "accuracy": float((margins > 0).mean())})


def _completed(row: dict, answer: str) -> dict:
    return {"prompt": row["prompt"], "completion": row[answer], "tools": row.get("tools")}


def _check_column(value: Any, column: str) -> None:
    if isinstance(value, str):
        check_unicode(value, column)
    elif isinstance(value, list) and value:
        for message in value:
            check_message(message, column)
    else:
        raise Malformed(f"{column!r} must be a string or a list of messages, got {short(value)}")
