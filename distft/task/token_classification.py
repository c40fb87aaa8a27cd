"""Token classification: a tag a word, entities in BIO or BIOES among them. Long sentences are read in windows."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch.nn.functional as F
from peft import TaskType
from torch import Tensor
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerFast

from distft.config import schema
from distft.data.corpus import Corpus
from distft.data.document import (
    IGNORED,
    Document,
    Layout,
    Malformed,
    Reading,
    Seen,
    Unusable,
    check_unicode,
    checked,
    short,
)
from distft.data.loader import Batch
from distft.errors import ConfigError
from distft.model.architecture import Architecture
from distft.model.load import Loaded
from distft.task import classification
from distft.task.classification_heads import class_names, classify_tokens, require_known
from distft.task.labels import separator
from distft.task.module import TaskModule
from distft.task.seam import Scores

Scheme = Literal["bio", "bioes", "plain"]
SCHEMES = {"bio": re.compile(r"O|[BI]-.+"), "bioes": re.compile(r"O|[BIES]-.+"), "plain": re.compile(r"(?s).+")}
WORDED = {"bio": "BIO (O, B-TYPE, I-TYPE)", "bioes": "BIOES (O, B-, I-, E-, S-TYPE)", "plain": "text"}
PER_TYPE = "per_type.json"


@dataclass(frozen=True)
class TaggedWords:
    """The reader of sentences with a tag a word. `tags` are those that are trained on, sorted."""

    tokenizer: PreTrainedTokenizerFast
    data: schema.Data
    config: schema.TokenClassification
    scheme: Scheme | None = None
    tags: tuple[str, ...] = ()
    known: bool = False
    """Whether scheme and tags are those of a trained run."""
    layout: Layout = Layout("token", "int32")  # noqa: RUF009 - it is immutable
    chat_formats: frozenset[str] = field(default=frozenset())

    @property
    def formats(self) -> Mapping[str, tuple[str, ...]]:
        return self.config.traits.formats

    @property
    def facts(self) -> dict[str, Any]:
        return {"scheme": self.scheme, "tags": list(self.tags), "separator": separator(self.tokenizer)}

    def options(self) -> dict[str, Any]:
        return {"config": self.config.model_dump(), "known": self.facts if self.known else None}

    def learn(self, rows: Iterable[Seen]) -> "TaggedWords":
        if self.known:
            return self
        found = Counter[str]()
        for seen in rows:
            tags = seen.row.get("tags")
            if isinstance(tags, list) and not seen.held_out:
                found.update(tag for tag in tags if isinstance(tag, str))
        if len(found) < 2:
            raise ConfigError(
                f"data.train: column 'tags' must have at least two tags, got {', '.join(found) or 'none'}"
            )
        wanted = self.config.scheme
        return replace(self, scheme=_scheme_of(found) if wanted == "auto" else wanted, tags=tuple(sorted(found)))

    def question(self, row: dict, format: str) -> str:
        tokens = row.get("tokens")
        return " ".join(map(str, tokens)).lower() if isinstance(tokens, list) else ""

    def chat(self, row: dict, format: str) -> list[dict] | None:
        return None

    def documents(self, rows: list[dict], format: str) -> list[Reading]:
        results, good = checked(rows, self._check)
        if good:
            texts = [" ".join(rows[i]["tokens"]) for i in good]
            encoded = self.tokenizer(texts, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
            for at, i in enumerate(good):
                columns = (encoded[name][at] for name in ("input_ids", "offset_mapping", "special_tokens_mask"))
                results[i] = self._windows(rows[i], results[i], *columns)
        return results

    def _check(self, row: dict) -> list[int]:
        """The numbers of the row's tags."""
        tokens, tags = row.get("tokens"), row.get("tags")
        for column, value in (("tokens", tokens), ("tags", tags)):
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise Malformed(f"{column!r} must be a list of strings, got {short(value)}")
        assert tokens is not None and tags is not None
        if len(tokens) != len(tags):
            raise Malformed(f"'tags' must be as many as 'tokens', got {len(tags)} for {len(tokens)}")
        if not tokens or not all(token.strip() for token in tokens):
            raise Malformed(f"'tokens' must be words, none of them empty, got {short(tokens)}")
        check_unicode("".join(tokens), "tokens")
        assert self.scheme is not None
        for tag in tags:
            if not SCHEMES[self.scheme].fullmatch(tag):
                raise Malformed(f"'tags' must be {WORDED[self.scheme]}, got {tag!r}; see task.scheme")
            if tag not in self.tags:
                raise Malformed(f"'tags' must be among those trained on ({', '.join(self.tags)}), got {tag!r}")
        return [self.tags.index(tag) for tag in tags]

    def _windows(
        self, row: dict, tags: list[int], ids: list[int], offsets: list[tuple[int, int]], special: list[int]
    ) -> Reading:
        """Documents of at most `max_length` tokens. Each word's first token carries its tag, in one window only."""
        first = next((i for i, is_special in enumerate(special) if not is_special), len(ids))
        last = len(ids) - next((i for i, is_special in enumerate(reversed(special)) if not is_special), 0)
        labels, words = np.full(len(ids), IGNORED, np.int32), list[int]()
        ends = np.cumsum([len(token) + 1 for token in row["tokens"]])
        for i in range(first, last):
            # A token may begin with the space before its word: its last character says which one it is of.
            word = int(np.searchsorted(ends, offsets[i][1] - 1, side="right"))
            if offsets[i][1] > offsets[i][0] and (not words or words[-1] != word):
                labels[i] = tags[word]
                words.append(word)
        if not words:
            return Unusable("no tokens")
        prefix, suffix, room = ids[:first], ids[last:], self.data.max_length - first - (len(ids) - last)
        whole = len(ids) <= self.data.max_length or self.data.too_long == "drop"
        spans = [(first, first, last)] if whole else _cut(first, last, room, self.config.stride)
        documents = []
        for context, start, stop in spans:
            inside = labels[context:stop].copy()
            inside[: start - context] = IGNORED
            labelled = np.pad(inside, (len(prefix), len(suffix)), constant_values=IGNORED)
            window = np.array([*prefix, *ids[context:stop], *suffix], np.int32)
            documents.append(Document(window, labelled, reference={"tags": row["tags"], "words": words}))
        return documents


def _cut(first: int, last: int, room: int, stride: int) -> list[tuple[int, int, int]]:
    """Windows over tokens [first, last): where each begins, where what is new in it begins, and where it ends."""
    if room <= stride:
        raise ConfigError(
            f"task.stride: must leave room in a window of {room} tokens, got {stride}; "
            f"use task.stride={max(0, room // 4)}, or a larger data.max_length"
        )
    spans = [(first, first, min(first + room, last))]
    while spans[-1][2] < last:
        start = spans[-1][2]
        spans.append((start - stride, start, min(start - stride + room, last)))
    return spans


def _scheme_of(tags: Iterable[str]) -> Scheme:
    """BIOES or BIO where any tag looks like it: then all have to."""
    if any(re.match(r"[ES]-", tag) for tag in tags) and any(tag.startswith("B-") for tag in tags):
        return "bioes"
    return "bio" if any(re.match(r"[BI]-", tag) for tag in tags) else "plain"


class TokenClassificationTask:
    def __init__(self, config: schema.TokenClassification):
        self.config = config

    def reader(
        self, tokenizer: PreTrainedTokenizerFast, data: schema.Data, facts: dict[str, Any] | None
    ) -> TaggedWords:
        reader = TaggedWords(tokenizer, data, self.config)
        return (
            reader if facts is None else replace(reader, scheme=facts["scheme"], tags=tuple(facts["tags"]), known=True)
        )

    def architecture(self, facts: dict[str, Any]) -> Architecture:
        names, heads = class_names(facts["tags"]), ("score", "classifier")
        return Architecture(AutoModelForTokenClassification, names, heads, peft_task=TaskType.TOKEN_CLS)

    def module(self, loaded: Loaded, facts: dict[str, Any]) -> "TokenClassifier":
        return TokenClassifier(loaded.model, loaded.compute_dtype, facts)

    def metrics(self, facts: dict[str, Any]) -> tuple[str, ...]:
        plain = facts["scheme"] == "plain"
        return ("accuracy", "macro_f1", "micro_f1") if plain else ("precision", "recall", "f1", "accuracy")

    def scores(self, outputs: Mapping[int, Any], held_out: Corpus, facts: dict[str, Any]) -> Scores:
        truth, found = tagged_rows(outputs, held_out, facts["tags"])
        if facts["scheme"] == "plain":
            number = {tag: i for i, tag in enumerate(facts["tags"])}
            flat = [np.array([number[tag] for row in rows for tag in row]) for rows in (truth, found)]
            return classification.scores(flat[0], flat[1], facts["tags"])
        return entity_scores(truth, found)


def tagged_rows(
    outputs: Mapping[int, Any], held_out: Corpus, tags: list[str]
) -> tuple[list[list[str]], list[list[str]]]:
    """Tags of the data and of the model, row by row. A word without a token is found to be what most words are: `O`."""
    truth, found = [], []
    for documents in held_out.by_row():
        reference = held_out.reference(documents[0])
        numbers = np.concatenate([outputs[document] for document in documents])
        row = ["O" if "O" in tags else tags[0]] * len(reference["tags"])
        for word, number in zip(reference["words"], numbers.tolist(), strict=True):
            row[word] = tags[number]
        truth.append(reference["tags"])
        found.append(row)
    return truth, found


def entity_scores(truth: list[list[str]], found: list[list[str]]) -> Scores:
    """Of whole entities, by seqeval (as CoNLL-2000's script counts): right is one with its type and both ends right."""
    from seqeval.metrics import accuracy_score, classification_report, f1_score, precision_score, recall_score

    report = classification_report(truth, found, output_dict=True, zero_division=0)
    table = {
        name: {key: float(value) for key, value in row.items()} for name, row in report.items() if " avg" not in name
    }
    return Scores(
        {
            "precision": float(precision_score(truth, found, zero_division=0)),
            "recall": float(recall_score(truth, found, zero_division=0)),
            "f1": float(f1_score(truth, found, zero_division=0)),
            "accuracy": float(accuracy_score(truth, found)),
        },
        {PER_TYPE: json.dumps(table, indent=2, ensure_ascii=False)},
    )


class TokenClassifier(TaskModule):
    """A model of `AutoModelForTokenClassification`, whose head sees only tokens that have a tag."""

    def __init__(self, model: Any, compute: Any, facts: dict[str, Any]):
        super().__init__(model, compute, facts)
        require_known(self.base, "token_classification")

    def loss(self, batch: Batch) -> Tensor:
        return self._loss(*self._logits(batch))

    def evaluate(self, batch: Batch) -> tuple[Tensor, list[np.ndarray]]:
        assert batch.segments is not None
        logits, targets = self._logits(batch)
        found = logits.argmax(-1).cpu().numpy()
        before = (batch.targets.flatten() != IGNORED).cumsum(0).cpu()
        ends = [int(before[stop - 1]) for stop in batch.segments[:, 0, 1].tolist()]
        return self._loss(logits, targets), np.split(found, ends[:-1]) if ends else []

    def _logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        targets = batch.targets.flatten()
        places = targets != IGNORED
        return classify_tokens(self.base, self.encode(batch).flatten(0, 1)[places]), targets[places]

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), targets, reduction="sum", label_smoothing=self.smoothing)
