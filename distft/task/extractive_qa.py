"""Extractive question answering: where in a context the answer stands. Long contexts are read in windows.

Exact match and F1 are those of SQuAD's evaluation script (arXiv:1606.05250; with unanswerable questions 1806.03822).
"""

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import TaskType
from torch import Tensor
from transformers import AutoModelForQuestionAnswering, PreTrainedTokenizerFast

from distft.config import schema
from distft.data.corpus import Corpus
from distft.data.document import Document, Layout, Malformed, Reading, Seen, Unusable, check_text, short
from distft.data.loader import Batch
from distft.model.architecture import Architecture
from distft.model.load import Loaded
from distft.task.classification_heads import require_known, score_spans
from distft.task.labels import separator
from distft.task.module import TaskModule
from distft.task.seam import Scores

Span = tuple[int, int]
BEST = 20
"""Starts, and ends, of which the best pair is looked for in a window."""


@dataclass(frozen=True)
class Questions:
    """The reader of questions with their contexts. A window without the answer points at its first token."""

    tokenizer: PreTrainedTokenizerFast
    data: schema.Data
    config: schema.ExtractiveQa
    layout: Layout = Layout("document", "int32", 2)  # noqa: RUF009 - it is immutable
    chat_formats: frozenset[str] = field(default=frozenset())

    @property
    def formats(self) -> Mapping[str, tuple[str, ...]]:
        return self.config.traits.formats

    @property
    def facts(self) -> dict[str, Any]:
        return {"separator": separator(self.tokenizer)}

    def options(self) -> dict[str, Any]:
        return {"stride": self.config.stride, "no_answer": self.config.no_answer}

    def learn(self, rows: Iterable[Seen]) -> "Questions":
        return self

    def question(self, row: dict, format: str) -> str:
        return " ".join(f"{row.get('question')} {row.get('context')}".lower().split())

    def chat(self, row: dict, format: str) -> list[dict] | None:
        return None

    def documents(self, rows: list[dict], format: str) -> list[Reading]:
        results: list[Reading] = []
        for row in rows:
            try:
                results.append(self._windows(row, self._answers(row)))
            except (Malformed, Unusable) as error:
                results.append(error)
        return results

    def _answers(self, row: dict) -> list[Span]:
        """Where the answers stand in the context."""
        check_text(row, "question")
        context = check_text(row, "context")
        spans = []
        for text, start in _listed(row.get("answers")):
            at = context.find(text) if start is None else start
            if at < 0 or context[at : at + len(text)] != text:
                where = (
                    ""
                    if start is None
                    else f" at character {start}, where {short(context[start : start + len(text)])} is"
                )
                raise Malformed(f"every answer must stand in 'context', got {short(text)}{where}")
            spans.append((at, at + len(text)))
        if not spans and not self.config.no_answer:
            raise Malformed("'answers' must hold an answer, got none; set task.no_answer=true if that is meant")
        return spans

    def _windows(self, row: dict, answers: list[Span]) -> list[Document]:
        limit, whole = self.data.max_length, self.data.too_long == "drop"
        frame = self.tokenizer.num_special_tokens_to_add(pair=True)
        room = limit - frame - len(self.tokenizer(row["question"], add_special_tokens=False)["input_ids"])
        if not whole and room < 1:
            raise Unusable(f"the question leaves no room for its context in {limit} tokens")
        cut = {"max_length": limit, "truncation": "only_second", "stride": min(self.config.stride, max(0, room - 1))}
        encoded = self.tokenizer(
            row["question"],
            row["context"],
            return_offsets_mapping=True,
            return_overflowing_tokens=True,
            verbose=False,
            **({} if whole else cut),
        )
        places = [
            [span if part == 1 else None for span, part in zip(offsets, encoded.sequence_ids(i), strict=True)]
            for i, offsets in enumerate(encoded["offset_mapping"])
        ]
        reference = {
            "context": row["context"],
            "answers": [row["context"][start:end] for start, end in answers],
            "windows": places,
        }
        return [
            Document(np.array(ids, np.int32), _labels(spans, answers), targets=1, reference=reference)
            for ids, spans in zip(encoded["input_ids"], places, strict=True)
        ]


def _listed(answers: Any) -> list[tuple[str, int | None]]:
    """Answers in any of their forms: SQuAD's `{text: [...], answer_start: [...]}`, objects, texts, or one of these."""
    if isinstance(answers, dict) and isinstance(answers.get("text"), list):
        texts, starts = answers["text"], answers.get("answer_start") or [None] * len(answers["text"])
        pairs: list[Any] = list(zip(texts, starts, strict=False)) if len(texts) == len(starts) else [(None, None)]
    else:
        several = answers if isinstance(answers, list) else [answers]
        pairs = [(a.get("text"), a.get("answer_start")) if isinstance(a, dict) else (a, None) for a in several]
    for text, start in pairs:
        if not isinstance(text, str) or not text or not (start is None or (type(start) is int and start >= 0)):
            raise Malformed(f"'answers' must be texts, with answer_start where they stand, got {short(answers)}")
    return pairs


def _labels(spans: list[Span | None], answers: list[Span]) -> np.ndarray:
    """First and last token of the first answer that is wholly in the window; 0, 0 if none is."""
    for start, end in answers:
        tokens = [i for i, span in enumerate(spans) if span and span[0] < end and span[1] > start]
        first, last = (spans[tokens[0]], spans[tokens[-1]]) if tokens else (None, None)
        if first and last and first[0] <= start and last[1] >= end:
            return np.array([tokens[0], tokens[-1]], np.int32)
    return np.zeros(2, np.int32)


class ExtractiveQaTask:
    def __init__(self, config: schema.ExtractiveQa):
        self.config = config

    def reader(self, tokenizer: PreTrainedTokenizerFast, data: schema.Data, facts: dict[str, Any] | None) -> Questions:
        return Questions(tokenizer, data, self.config)

    def architecture(self, facts: dict[str, Any]) -> Architecture:
        return Architecture(AutoModelForQuestionAnswering, heads=("qa_outputs",), peft_task=TaskType.QUESTION_ANS)

    def module(self, loaded: Loaded, facts: dict[str, Any]) -> "SpanScorer":
        return SpanScorer(loaded.model, loaded.compute_dtype, facts)

    def metrics(self, facts: dict[str, Any]) -> tuple[str, ...]:
        return self.config.traits.metrics

    def scores(self, outputs: Mapping[int, Any], held_out: Corpus, facts: dict[str, Any]) -> Scores:
        exact, f1 = [], []
        for documents in held_out.by_row():
            reference = held_out.reference(documents[0])
            found = best_answer([outputs[i] for i in documents], reference, self.config)
            answers = reference["answers"] or [""]
            exact.append(max(normalised(found) == normalised(answer) for answer in answers))
            f1.append(max(word_f1(found, answer) for answer in answers))
        return Scores({"exact_match": float(np.mean(exact)), "f1": float(np.mean(f1))})


def best_answer(logits: list[np.ndarray], reference: dict[str, Any], config: schema.ExtractiveQa) -> str:
    """The text of the best span over a row's windows, whose logits are [2, L] each; "" for no answer."""
    best, text = float("-inf"), ""
    for (starts, ends), spans in zip(logits, reference["windows"], strict=True):
        inside = np.array([span is not None for span in spans])
        # The best few among the context's own tokens: a strong first token must not take their places.
        for start in np.argsort(-np.where(inside, starts, -np.inf), kind="stable")[:BEST]:
            for end in np.argsort(-np.where(inside, ends, -np.inf), kind="stable")[:BEST]:
                fits = inside[start] and inside[end] and start <= end < start + config.max_answer
                if fits and starts[start] + ends[end] > best:
                    best = float(starts[start] + ends[end])
                    text = reference["context"][spans[start][0] : spans[end][1]]
    none = min(float(starts[0] + ends[0]) for starts, ends in logits)
    return "" if config.no_answer and none > best + config.no_answer_margin else text


def normalised(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces."""
    plain = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def word_f1(found: str, answer: str) -> float:
    ours, theirs = normalised(found).split(), normalised(answer).split()
    if not ours or not theirs:
        return float(ours == theirs)
    same = (Counter(ours) & Counter(theirs)).total()
    return 2 * same / (len(ours) + len(theirs))


class SpanScorer(TaskModule):
    """A model of `AutoModelForQuestionAnswering`: an encoder, since a start must see what follows it."""

    def __init__(self, model: Any, compute: torch.dtype, facts: dict[str, Any]):
        super().__init__(model, compute, facts)
        require_known(self.base, "extractive_qa", decoders=False)

    def loss(self, batch: Batch) -> Tensor:
        return self._loss(*self._logits(batch), batch)

    def evaluate(self, batch: Batch) -> tuple[Tensor, list[np.ndarray]]:
        logits, real = self._logits(batch)
        lengths = real.sum(1).tolist()
        plain = logits.detach().float().cpu().numpy()
        return self._loss(logits, real, batch), [row[:, :length] for row, length in zip(plain, lengths, strict=True)]

    def _logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits [D, 2, L] of starts and ends, L the longest document's length, and which of the places are real."""
        assert batch.segments is not None
        scores = score_spans(self.base, self.encode(batch).flatten(0, 1))
        starts, stops = batch.segments[:, 0].unbind(1)
        offsets = torch.arange(batch.max_document, device=scores.device)
        real = offsets < (stops - starts).unsqueeze(1)
        places = (starts.unsqueeze(1) + offsets).clamp(max=len(scores) - 1)
        return scores[places].transpose(1, 2), real

    def _loss(self, logits: Tensor, real: Tensor, batch: Batch) -> Tensor:
        """Per document the mean of both cross-entropies, as in `transformers`."""
        hidden = logits.float().masked_fill(~real.unsqueeze(1), torch.finfo(torch.float32).min)
        return F.cross_entropy(hidden.flatten(0, 1), batch.targets.flatten(), reduction="sum") / 2
