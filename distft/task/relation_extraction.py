"""Relation extraction: which relation holds between two marked spans of a text.

Both spans are framed by markers, `@ Ann @ lives in # Rome #`, and a classifier reads the markers' states side by side
(entity markers of arXiv:1906.03158, in the punctuation of arXiv:2102.01373: no token is new).
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import TaskType
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification, PreTrainedModel, PreTrainedTokenizerFast

from distft.config import schema
from distft.data.corpus import Corpus
from distft.data.document import Document, Layout, Malformed, Reading, Seen, Unusable, check_text, checked, short
from distft.data.loader import Batch
from distft.errors import ConfigError
from distft.model.architecture import Architecture
from distft.model.load import Loaded
from distft.task import classification
from distft.task.classification_heads import class_names, classify_tokens, is_decoder, require_known
from distft.task.labels import separator
from distft.task.module import TaskModule
from distft.task.seam import Scores

MARKS = {"subject": ("@ ", " @"), "object": ("# ", " #")}
LABEL, OPENINGS, CLOSINGS = 0, (1, 3), (2, 4)
"""Columns of a document's labels: its class, and the places of the markers' tokens in it."""


@dataclass(frozen=True)
class MarkedSpans:
    """The reader of texts with two spans and their relation. `labels` are those that are trained on, sorted."""

    tokenizer: PreTrainedTokenizerFast
    data: schema.Data
    formats: Mapping[str, tuple[str, ...]]
    labels: tuple[str, ...] = ()
    known: bool = False
    layout: Layout = Layout("document", "int32", 5)  # noqa: RUF009 - it is immutable
    chat_formats: frozenset[str] = field(default=frozenset())

    @property
    def facts(self) -> dict[str, Any]:
        return {"labels": list(self.labels), "separator": separator(self.tokenizer)}

    def options(self) -> dict[str, Any]:
        return {"known": self.facts if self.known else None}

    def learn(self, rows: Iterable[Seen]) -> "MarkedSpans":
        if self.known:
            return self
        labels = (seen.row.get("label") for seen in rows if not seen.held_out)
        found = Counter(label for label in labels if isinstance(label, str))
        if len(found) < 2:
            raise ConfigError(
                f"data.train: column 'label' must have at least two relations, got {', '.join(found) or 'none'}"
            )
        return replace(self, labels=tuple(sorted(found)))

    def question(self, row: dict, format: str) -> str:
        return " ".join(str(row.get(column)) for column in ("text", "subject", "object")).lower()

    def chat(self, row: dict, format: str) -> list[dict] | None:
        return None

    def documents(self, rows: list[dict], format: str) -> list[Reading]:
        results, good = checked(rows, self._mark)
        if good:
            texts = [results[i][0] for i in good]
            encoded = self.tokenizer(texts, return_offsets_mapping=True, verbose=False)
            for i, ids, offsets in zip(good, encoded["input_ids"], encoded["offset_mapping"], strict=True):
                results[i] = self._document(ids, offsets, *results[i][1:])
        return results

    def _mark(self, row: dict) -> tuple[str, int, list[int]]:
        """The text with its markers, its class, and the characters at which the four markers stand."""
        text, label = check_text(row, "text"), row.get("label")
        if label not in self.labels:
            raise Malformed(f"'label' must be a relation that is trained on ({', '.join(self.labels)}), got {label!r}")
        spans = {name: _span(row, name, text) for name in MARKS}
        first, second = sorted(spans.values())
        if first[1] > second[0]:
            raise Malformed(f"'subject' and 'object' must not overlap, got {short(list(spans.values()))}")
        marked, places, at = "", {}, 0
        for name, (start, stop) in sorted(spans.items(), key=lambda item: item[1]):
            opening, closing = MARKS[name]
            marked += text[at:start]
            opened = len(marked)
            marked += opening + text[start:stop] + closing
            places[name] = [opened, len(marked) - 1]
            at = stop
        return marked + text[at:], self.labels.index(label), [*places["subject"], *places["object"]]

    def _document(self, ids: list[int], offsets: list[tuple[int, int]], label: int, marks: list[int]) -> Reading:
        limit = self.data.max_length
        places = [next((i for i, (a, b) in enumerate(offsets) if a <= mark < b), None) for mark in marks]
        assert None not in places, "a marker is text, which every tokenizer keeps"
        too_long = len(ids) > limit and self.data.too_long == "truncate"
        if too_long and max(place for place in places if place is not None) >= limit:
            return Unusable(f"a span ends beyond the first {limit} tokens")
        kept = np.array(ids[:limit] if too_long else ids, np.int32)
        return [Document(kept, np.array([label, *places], np.int32), targets=1, truncated=too_long)]


def _span(row: dict, name: str, text: str) -> tuple[int, int]:
    value: Any = row.get(name)
    good = isinstance(value, list) and len(value) == 2 and all(type(at) is int for at in value)
    if not good or not 0 <= value[0] < value[1] <= len(text) or not text[value[0] : value[1]].strip():
        raise Malformed(
            f"{name!r} must be [start, end] of a span in the {len(text)} characters of 'text', got {short(value)}"
        )
    return value[0], value[1]


class RelationExtractionTask:
    def __init__(self, config: schema.RelationExtraction):
        self.config = config

    def reader(
        self, tokenizer: PreTrainedTokenizerFast, data: schema.Data, facts: dict[str, Any] | None
    ) -> MarkedSpans:
        reader = MarkedSpans(tokenizer, data, self.config.traits.formats)
        return reader if facts is None else replace(reader, labels=tuple(facts["labels"]), known=True)

    def architecture(self, facts: dict[str, Any]) -> Architecture:
        names, heads = class_names(facts["labels"]), ("score", "classifier")
        return Architecture(AutoModelForTokenClassification, names, heads, _widen, peft_task=TaskType.TOKEN_CLS)

    def module(self, loaded: Loaded, facts: dict[str, Any]) -> "RelationClassifier":
        return RelationClassifier(loaded.model, loaded.compute_dtype, facts)

    def metrics(self, facts: dict[str, Any]) -> tuple[str, ...]:
        return self.config.traits.metrics

    def scores(self, outputs: Mapping[int, Any], held_out: Corpus, facts: dict[str, Any]) -> Scores:
        everyone = range(held_out.num_documents)
        truth = np.array([held_out.document(i)[1][LABEL] for i in everyone])
        return classification.scores(truth, np.stack([outputs[i] for i in everyone]).argmax(1), facts["labels"])


def _widen(model: PreTrainedModel) -> None:
    """Two states stand side by side in front of the head."""
    name = "score" if is_decoder(model) else "classifier"
    setattr(model, name, nn.Linear(2 * model.config.hidden_size, model.config.num_labels))


class RelationClassifier(TaskModule):
    """An `AutoModelForTokenClassification` with a head of twice the width.

    Encoders are read at the opening markers, decoders at the closing ones, which have seen the span.
    """

    def __init__(self, model: Any, compute: torch.dtype, facts: dict[str, Any]):
        super().__init__(model, compute, facts)
        require_known(self.base, "relation_extraction")

    def loss(self, batch: Batch) -> Tensor:
        return self._loss(self.logits(batch), batch)

    def evaluate(self, batch: Batch) -> tuple[Tensor, list[np.ndarray]]:
        logits = self.logits(batch)
        return self._loss(logits, batch), list(logits.detach().float().cpu().numpy())

    def logits(self, batch: Batch) -> Tensor:
        """[D, num_labels]"""
        assert batch.segments is not None
        columns = CLOSINGS if is_decoder(self.base) else OPENINGS
        places = batch.segments[:, 0, :1] + batch.targets[:, columns]
        states = self.encode(batch).flatten(0, 1)[places]
        return classify_tokens(self.base, states.flatten(1))

    def _loss(self, logits: Tensor, batch: Batch) -> Tensor:
        targets = batch.targets[:, LABEL]
        return F.cross_entropy(logits.float(), targets, reduction="sum", label_smoothing=self.smoothing)
