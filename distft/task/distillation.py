"""Distillation: a student learns to predict what a teacher predicts, beside what the data says."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from distft.config import schema
from distft.data.corpus import Corpus
from distft.data.document import IGNORED
from distft.data.loader import Batch
from distft.errors import ConfigError
from distft.model.architecture import Architecture
from distft.model.load import Loaded
from distft.model.tokenizer import load_tokenizer
from distft.task import divergence
from distft.task.causal_lm import CausalLM, require_decoder
from distft.task.chat import Template
from distft.task.lm_head import Finish
from distft.task.module import Precompute, TaskModule
from distft.task.seam import Scores


class DistillationTask:
    """Causal data of every format; what is supervised in it is what the teacher is asked for."""

    def __init__(self, config: schema.Distillation):
        self.config = config

    def reader(self, tokenizer: PreTrainedTokenizerFast, data: schema.Data, facts: dict[str, Any] | None) -> Template:
        require_same_vocabulary(tokenizer, load_tokenizer(self.config.teacher, key="task.teacher"))
        return Template(tokenizer, data.loss_on)

    def architecture(self, facts: dict[str, Any]) -> Architecture:
        return Architecture(teacher=self.config.teacher)

    def module(self, loaded: Loaded, facts: dict[str, Any]) -> "Distillation":
        return Distillation(loaded, self.config)

    def metrics(self, facts: dict[str, Any]) -> tuple[str, ...]:
        return self.config.traits.metrics

    def scores(self, outputs: Mapping[int, Any], held_out: Corpus, facts: dict[str, Any]) -> Scores:
        """Means over all supervised tokens, as the loss is."""
        totals = np.sum([outputs[i] for i in sorted(outputs)], axis=0) / held_out.num_targets
        return Scores(dict(zip(self.config.traits.metrics, totals.tolist(), strict=True)))


def require_same_vocabulary(student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast) -> None:
    """Raises ConfigError where a token of one is another token of the other."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    differing = [token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)]
    if differing:
        some = ", ".join(map(repr, sorted(differing)[:3]))
        raise ConfigError(
            f"task.teacher.source: must have the vocabulary of the student's tokenizer ({len(ours):,} tokens), got "
            f"{len(theirs):,} tokens, of which {len(differing):,} differ ({some}); "
            "take a teacher of the same family"
        )


class Distillation(TaskModule):
    """The student, and beside it the teacher, which never trains.

    A token's loss is (1 - w) * cross-entropy + w * T^2 * KL of both models' predictions at temperature T.
    """

    def __init__(self, loaded: Loaded, config: schema.Distillation):
        super().__init__(loaded.model, loaded.compute_dtype)
        self.config = config
        require_decoder(self.base, config.name)
        _require_plain_head(self.base, "adapter")
        assert loaded.teacher is not None
        self.teacher = CausalLM(loaded.teacher.model, loaded.teacher.compute_dtype)
        _require_plain_head(self.teacher.base, "task.teacher")
        self.shared = min(len(each.get_output_embeddings().weight) for each in (self.base, self.teacher.base))
        """Tokens that both models have; one of the heads may be padded further."""
        if config.cache:
            self.precompute = _precompute(config, self.shared, loaded.teacher, self._remember)
        self.remembered: dict[str, Remembered] = {}

    def settle(self, device: torch.device, rows: list[Tensor] | None = None) -> None:
        super().settle(device, rows)
        self.teacher.settle(device, rows)

    def loss(self, batch: Batch) -> Tensor:
        return self._compare(batch)[0]

    def evaluate(self, batch: Batch) -> tuple[Tensor, list[Any]]:
        """Of each document the sums over its tokens: divergence, cross-entropy. While it precomputes, the teacher's."""
        if self.precompute is not None and self.precompute.is_running:
            ids, target = self._ask(batch)
            split = zip(_by_document(ids, batch), _by_document(target, batch), strict=True)
            return target.sum() * 0, [{"ids": some, "log_probabilities": said} for some, said in split]
        loss, found = self._compare(batch)
        return loss, [part.sum(0, dtype=np.float64) for part in _by_document(found, batch)]

    def _remember(self, split: str, corpus: Corpus, answers: dict[str, np.ndarray]) -> None:
        self.remembered[split] = Remembered(
            np.cumsum(corpus.target_counts), answers["ids"], answers["log_probabilities"]
        )

    def read_outside_its_module(self) -> list[nn.Parameter]:
        return [*super().read_outside_its_module(), *self.teacher.read_outside_its_module()]

    def _compare(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The sum of the token losses, and of each supervised token divergence and cross-entropy [N, 2]."""
        config, model, labels = self.config, self.base, batch.targets.flatten()
        kept = (labels != IGNORED).nonzero().squeeze(1)
        labels = labels[kept]
        says = self._teacher_says(batch, kept)
        hidden = self.encode(batch).flatten(0, 1).index_select(0, kept)
        head = model.get_output_embeddings()

        def measure(states: Tensor, weight: Tensor, bias: Tensor | None, rows: slice) -> tuple[Tensor, Tensor]:
            ids, target = says(rows)
            logits = to_logits(self.finish, states, weight, bias)
            found = divergence.in_bins(logits[:, : self.shared] / config.temperature, ids)
            kl = divergence.divergence(target, found, config.direction)
            cross_entropy = F.cross_entropy(logits, labels[rows], reduction="none")
            loss = (1 - config.kl_weight) * cross_entropy + config.kl_weight * config.temperature**2 * kl
            return loss.sum(), torch.stack([kl, cross_entropy], 1)

        return divergence.summed(measure, hidden, head.weight, head.bias)

    def _teacher_says(self, batch: Batch, kept: Tensor) -> Callable[[slice], divergence.Bins]:
        """The teacher's predictions for some of the supervised tokens `kept`: remembered, or computed at the call."""
        remembered = self.remembered.get("train" if self.training else "eval")
        if remembered is not None:
            ids, target = (part.to(kept.device) for part in remembered.of(batch.documents))
            return lambda rows: (ids[rows].long(), target[rows])
        states, teacher = self._teacher_states(batch)[kept], self.teacher.base
        head = teacher.get_output_embeddings()

        @torch.no_grad()
        def compute(rows: slice) -> divergence.Bins:
            logits = to_logits(self.teacher.finish, states[rows], head.weight, head.bias)[:, : self.shared]
            return divergence.bins(logits / self.config.temperature, self.config.top_k)

        return compute

    def _ask(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The teacher's likeliest tokens and their log-probabilities for every supervised token of the batch."""
        kept = (batch.targets.flatten() != IGNORED).nonzero().squeeze(1)
        says = self._teacher_says(batch, kept)
        found = [says(rows) for rows in divergence.chunks(len(kept), self.shared)]
        ids = [some for some, _ in found if some is not None]
        if not ids:  # a rank without rows
            return kept.new_zeros(0, 1), torch.zeros(0, 1, device=kept.device)
        return torch.cat(ids), torch.cat([said for _, said in found])

    @torch.no_grad()
    def _teacher_states(self, batch: Batch) -> Tensor:
        teacher = self.teacher
        training = teacher.training
        teacher.eval()
        with torch.autocast(batch.input_ids.device.type, teacher.compute, enabled=teacher.compute != torch.float32):
            states = teacher.encode(batch).flatten(0, 1)
        teacher.train(training)
        return states


@dataclass(frozen=True)
class Remembered:
    """What the teacher said of the documents of a split, token after token."""

    ends: np.ndarray
    """int64 [num_documents]: where each document's tokens end."""
    ids: np.ndarray
    log_probabilities: np.ndarray

    def of(self, documents: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Of the supervised tokens of these documents, in order."""
        spans = [slice(self.ends[i - 1] if i else 0, self.ends[i]) for i in documents]
        ids, said = (
            np.concatenate([part[:0], *(part[span] for span in spans)]) for part in (self.ids, self.log_probabilities)
        )
        return torch.from_numpy(ids), torch.from_numpy(said)


def _precompute(config: schema.Distillation, vocabulary: int, teacher: Loaded, take: Callable[..., None]) -> Precompute:
    top_k = config.top_k
    assert top_k is not None, "checked with the config"
    if top_k >= vocabulary:
        raise ConfigError(
            f"task.top_k: must be less than the vocabulary of {vocabulary:,} where task.cache keeps the teacher's "
            f"predictions, got {top_k}; set task.top_k=64"
        )
    depends_on = [config.temperature, top_k, config.teacher.model_dump(mode="json"), teacher.identity["digest"]]
    depends_on += [
        str(teacher.compute_dtype),
        *(Path(each).read_text(encoding="utf-8") for each in (__file__, divergence.__file__)),
    ]
    key = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:16]
    columns = {"ids": ("int32", top_k), "log_probabilities": ("float32", top_k + 1)}
    return Precompute(f"teacher-{key}", columns, take)


def _by_document(values: Tensor, batch: Batch) -> list[np.ndarray]:
    """`values` [N, ...] of the supervised tokens, apart for each document."""
    assert batch.segments is not None
    places = (batch.targets.flatten() != IGNORED).nonzero().squeeze(1)
    bounds = torch.searchsorted(places, batch.segments[1:, 0, 0].contiguous())
    return [part.cpu().numpy() for part in values.tensor_split(bounds.cpu())] if batch.documents else []


def to_logits(finish: Finish, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Float32 logits [n, V] as the model's head makes them."""
    bias = None if bias is None else bias.to(hidden.dtype)
    return finish(F.linear(hidden, weight.to(hidden.dtype), bias))


def _require_plain_head(model: PreTrainedModel, key: str) -> None:
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise ConfigError(
            f"{key}: must leave the output layer a plain linear one for task=distillation, got a "
            f"{type(head).__name__}; leave it out of adapter.targets and adapter.modules_to_save, or use adapter=full"
        )
