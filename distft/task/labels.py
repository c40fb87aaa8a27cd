"""Rows of text with labels: what their labels are is learnt from the data, or taken from a trained run."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

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
    check_text,
    checked,
    short,
)
from distft.errors import ConfigError

Kind = Literal["single_label", "multi_label", "regression"]


@dataclass(frozen=True)
class LabelledTexts:
    """The reader of texts (or pairs of texts) with classes or numbers.

    `labels` are the classes, sorted; empty until they are learnt. `counts`: rows of each that are trained on.
    """

    tokenizer: PreTrainedTokenizerFast
    data: schema.Data
    formats: Mapping[str, tuple[str, ...]]
    wanted: Literal["auto", "single_label", "multi_label", "regression"]
    kind: Kind | None = None
    labels: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    known: bool = False
    """Whether kind and labels are those of a trained run."""
    chat_formats: frozenset[str] = field(default=frozenset())

    @property
    def layout(self) -> Layout:
        if self.kind == "single_label":
            return Layout("document", "int32", 1)
        return Layout("document", "float32", max(1, len(self.labels)))

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "labels": list(self.labels),
            "counts": list(self.counts),
            "separator": separator(self.tokenizer),
        }

    def options(self) -> dict[str, Any]:
        return {"wanted": self.wanted, "known": self.facts if self.known else None}

    def learn(self, rows: Iterable[Seen]) -> "LabelledTexts":
        if self.known:
            return self
        kind, counts = None if self.wanted == "auto" else self.wanted, Counter[str]()
        for seen in rows:
            label = seen.row.get("label")
            if label is None or seen.held_out:
                continue
            kind = kind or _kind_of(label)
            if kind != "regression":
                counts.update(_names(label))
        if kind is not None and kind != "regression" and len(counts) < 2:
            raise ConfigError(
                f"data.train: column 'label' must have at least two classes, got {', '.join(counts) or 'none'}; "
                "for numbers set task.kind=regression"
            )
        names = sorted(counts)
        return replace(self, kind=kind or "single_label", labels=tuple(names), counts=tuple(counts[n] for n in names))

    def question(self, row: dict, format: str) -> str:
        texts = (str(row.get(column)) for column in self.formats[format] if column.startswith("text"))
        return " ".join(" ".join(texts).lower().split())

    def chat(self, row: dict, format: str) -> list[dict] | None:
        return None

    def documents(self, rows: list[dict], format: str) -> list[Reading]:
        results, good = checked(rows, lambda row: self._texts_and_label(row, format))
        encoded = encode(self.tokenizer, [results[i][0] for i in good], self.data)
        for i, (ids, truncated) in zip(good, encoded, strict=True):
            document = Document(ids, results[i][1], targets=1, truncated=truncated)
            results[i] = [document] if len(ids) else Unusable("no tokens")
        return results

    def _texts_and_label(self, row: dict, format: str) -> tuple[tuple[str, ...], np.ndarray]:
        check_columns(row, self.formats[format])
        texts = tuple(check_text(row, column) for column in self.formats[format] if column != "label")
        return texts, self._label(row["label"])

    def _label(self, label: Any) -> np.ndarray:
        if self.kind == "regression":
            try:
                return np.array([float(label)], np.float32)
            except (TypeError, ValueError):
                raise Malformed(f"'label' must be a number, got {short(label)}") from None
        if isinstance(label, list) is not (self.kind == "multi_label"):
            wanted = "a list of classes" if self.kind == "multi_label" else "one class"
            raise Malformed(f"'label' must be {wanted}, as in the first row, got {short(label)}")
        numbers = [self._number(name) for name in _names(label)]
        if self.kind == "single_label":
            return np.array(numbers, np.int32)
        several = np.zeros(len(self.labels), np.float32)
        several[numbers] = 1
        return several

    def _number(self, name: str) -> int:
        try:
            return self.labels.index(name)
        except ValueError:
            listed = ", ".join(self.labels[:12]) + (", ..." if len(self.labels) > 12 else "")
            raise Malformed(f"'label' must be a class that is trained on ({listed}), got {name!r}") from None


def encode(
    tokenizer: PreTrainedTokenizerFast, texts: list[tuple[str, ...]], data: schema.Data
) -> list[tuple[np.ndarray, bool]]:
    """Token ids of texts or pairs with the tokenizer's special tokens, and whether they were cut to `max_length`.

    Of a pair the longer text is cut first. Where a tokenizer has no separator, a line break stands between the texts.
    """
    if not texts:
        return []
    if len(texts[0]) == 2 and tokenizer.num_special_tokens_to_add(pair=True) == 0:
        texts = [("\n".join(pair),) for pair in texts]
    encoded = [np.array(ids, np.int32) for ids in _ids(tokenizer, texts)]
    cut = data.too_long == "truncate"
    long = [i for i, ids in enumerate(encoded) if cut and len(ids) > data.max_length]
    if long:
        shorter = _ids(tokenizer, [texts[i] for i in long], truncation=True, max_length=data.max_length)
        for i, ids in zip(long, shorter, strict=True):
            encoded[i] = np.array(ids, np.int32)
    return [(ids, i in set(long)) for i, ids in enumerate(encoded)]


def _ids(tokenizer: PreTrainedTokenizerFast, texts: list[tuple[str, ...]], **options: Any) -> list[list[int]]:
    columns = [list(column) for column in zip(*texts, strict=True)]
    return tokenizer(*columns, verbose=False, return_attention_mask=False, return_token_type_ids=False, **options)[
        "input_ids"
    ]


def separator(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The token that ends the first of two texts, where the model is told by token types which is which."""
    return tokenizer.sep_token_id if "token_type_ids" in tokenizer.model_input_names else None


def _kind_of(label: Any) -> Kind:
    if isinstance(label, list):
        return "multi_label"
    return "regression" if isinstance(label, int | float) and not isinstance(label, bool) else "single_label"


def _names(label: Any) -> list[str]:
    return [str(each) for each in (label if isinstance(label, list) else [label])]
