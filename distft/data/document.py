"""What a row becomes, and who turns it into that: the seam between a task and the tokenised data."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


IGNORED = -100
"""The label of a token that is not supervised."""


class Malformed(ValueError):
    """A row that is not of its format: a mistake in the data, never dropped in silence."""


class Unusable(ValueError):
    """A well-formed row that this task or template cannot train on: dropped, and counted by this reason."""


@dataclass(frozen=True)
class Layout:
    """How the labels of a task's documents lie."""

    labels: Literal["next_token", "token", "document"]
    """`next_token`: one bool a token, whether the token before has to predict it. `token`: one int32 a token, IGNORED:
    none. `document`: `width` numbers a document."""
    dtype: Literal["bool", "int32", "float32"] = "bool"
    width: int = 0
    segments: int = 1
    """Parts of a document that do not see each other, though they stay together in one row: the two answers of a
    preference pair, source and target of a translation. Every document of a task has equally many."""

    @property
    def per_token(self) -> bool:
        return self.labels != "document"


NEXT_TOKEN = Layout("next_token")


@dataclass(frozen=True)
class Document:
    ids: np.ndarray
    """int32 [L]"""
    labels: np.ndarray
    """By the task's layout. Under `next_token` the first token of a segment is never True: nothing predicts it."""
    segments: tuple[int, ...] = ()
    """Lengths of its segments, which sum to L; (): it is one."""
    targets: int | None = None
    """How much it counts in the loss's denominator; null: its labels that are not IGNORED or False."""
    truncated: bool = False
    reference: Any = None
    """JSON that the task's metrics need of this row and the labels do not say. Kept for held-out rows only."""

    def num_targets(self) -> int:
        if self.targets is not None:
            return self.targets
        return int((self.labels != IGNORED).sum() if self.labels.dtype != bool else self.labels.sum())


Reading = list[Document] | Malformed | Unusable
"""What a row became: documents (more than one where a long text is read in windows), or the reason why not."""


@dataclass(frozen=True)
class Seen:
    """A row in front of a reader that learns from the data."""

    row: dict
    format: str
    held_out: bool


class Reader(Protocol):
    """Turns rows of the task's formats into documents. Processes that tokenise get a copy of it by pickle."""

    @property
    def tokenizer(self) -> "PreTrainedTokenizerFast": ...

    @property
    def formats(self) -> Mapping[str, tuple[str, ...]]:
        """Columns by format; of several that fit, the first is taken."""
        ...

    @property
    def chat_formats(self) -> frozenset[str]:
        """Those whose rows may be chats."""
        ...

    @property
    def layout(self) -> Layout: ...

    @property
    def facts(self) -> dict[str, Any]:
        """What it learnt (label names, say), as JSON: goes into the model's config and beside every checkpoint."""
        ...

    def options(self) -> dict[str, Any]:
        """What the documents depend on beside rows, tokenizer, code and the length options: part of the cache's key."""
        ...

    def learn(self, rows: Iterable[Seen]) -> "Reader":
        """The reader that knows what has to be known of all rows, before the first is read.

        Rows may be malformed; that is told later. Raises ConfigError for held-out rows that training knows nothing of.
        """
        ...

    def question(self, row: dict, format: str) -> str:
        """What a row asks: rows with equal questions stay in one split. The row may be malformed."""
        ...

    def documents(self, rows: list[dict], format: str) -> list[Reading]:
        """One result a row, in order."""
        ...

    def chat(self, row: dict, format: str) -> list[dict] | None:
        """The messages of a row of a chat format; None: it is none."""
        ...


def checked(rows: list[dict], check: Callable[[dict], Any]) -> tuple[list[Any], list[int]]:
    """What `check` makes of each row, or the Malformed that it raised; and the numbers of the rows that are good."""
    results: list[Any] = []
    for row in rows:
        try:
            results.append(check(row))
        except Malformed as error:
            results.append(error)
    return results, [i for i, result in enumerate(results) if not isinstance(result, Malformed)]


def question_hash(question: str) -> int:
    """64 bits of the sha256."""
    return int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "little")


def check_unicode(value: str, column: str) -> None:
    """Raises Malformed for text that no tokenizer takes; its own error would name no row."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Malformed(f"{column!r} must be valid Unicode, got a lone surrogate at character {error.start}") from None


def check_columns(row: dict, columns: Iterable[str]) -> None:
    """Raises Malformed where one of them is missing or null."""
    missing = [column for column in columns if row.get(column) is None]
    if missing:
        raise Malformed(f"must have {' and '.join(map(repr, missing))}, got {sorted(row)}")


def check_text(row: dict, column: str) -> str:
    """The text in a column. Raises Malformed where there is none."""
    value = row.get(column)
    if not isinstance(value, str):
        raise Malformed(f"{column!r} must be a string, got {short(value)}")
    check_unicode(value, column)
    return value


def short(value: Any) -> str:
    """A value for a message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
