"""Causal language modelling: the loss over a batch of packed documents, and replies to prompts."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from distft.config import schema
from distft.data.corpus import Corpus
from distft.data.document import IGNORED
from distft.data.loader import Batch
from distft.errors import ConfigError
from distft.model.architecture import CAUSAL, Architecture
from distft.model.load import Loaded
from distft.model.packed import sees_ahead
from distft.task.chat import Template
from distft.task.lm_head import by_chunks
from distft.task.module import TaskModule
from distft.task.seam import Scores


class CausalLmTask:
    """Chats, prompts with completions, or plain text."""

    def __init__(self, config: schema.CausalLm):
        self.config = config

    def reader(self, tokenizer: PreTrainedTokenizerFast, data: schema.Data, facts: dict[str, Any] | None) -> Template:
        return Template(tokenizer, data.loss_on)

    def architecture(self, facts: dict[str, Any]) -> Architecture:
        return CAUSAL

    def module(self, loaded: Loaded, facts: dict[str, Any]) -> "CausalLM":
        return CausalLM(loaded.model, loaded.compute_dtype, measures_greedy=self.config.exact_match)

    def metrics(self, facts: dict[str, Any]) -> tuple[str, ...]:
        return self.config.traits.metrics if self.config.exact_match else ()

    def scores(self, outputs: Mapping[int, Any], held_out: Corpus, facts: dict[str, Any]) -> Scores:
        right, count = np.array([outputs[i] for i in sorted(outputs)]).T
        return Scores(
            {"exact_match": float((right == count).mean()), "token_accuracy": float(right.sum() / count.sum())}
        )


class CausalLM(TaskModule):
    """A model of `AutoModelForCausalLM`."""

    def __init__(self, model: PreTrainedModel | PeftModel, compute: torch.dtype, *, measures_greedy: bool = False):
        super().__init__(model, compute)
        self.measures_greedy = measures_greedy
        require_decoder(self.base, "causal_lm")

    def loss(self, batch: Batch) -> Tensor:
        """Sum of the batch's token losses."""
        twice = self.training and self.regularisation.r_drop > 0
        batch = batch.doubled() if twice else batch
        if twice:
            self.regulariser.begin(True, batch.seed, batch.document_ends)
        hidden, targets = self.encode(batch).flatten(0, 1), batch.targets.flatten()
        return self._pair_loss(hidden, targets) if twice else self._loss(hidden, targets)

    def evaluate(self, batch: Batch) -> tuple[Tensor, list[list[int]]]:
        """If asked for, of each document how many of its targets greedy decoding writes, and how many there are.

        It writes an answer token for token exactly if each of them is the likeliest after those before it: one pass
        tells, and nothing has to be generated.
        """
        if not self.measures_greedy:
            return self.loss(batch), []
        hidden, targets = self.encode(batch).flatten(0, 1), batch.targets.flatten()
        right = torch.zeros_like(targets)
        kept = (targets != IGNORED).nonzero().squeeze(1)
        right[kept] = (self.head.likeliest(hidden.index_select(0, kept)) == targets[kept]).long()
        found = torch.stack([right, (targets != IGNORED).long()], 1)
        assert batch.segments is not None
        bounds = batch.segments[:, 0, 0], batch.segments[:, -1, 1]
        each = [found[start:stop].sum(0).tolist() for start, stop in zip(*(b.tolist() for b in bounds), strict=True)]
        return self._loss(hidden, targets), each

    def _loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return self.head.loss(hidden, targets, smoothing=self.smoothing)

    def _pair_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """R-Drop's loss over the same tokens under two dropout masks, one after the other in `hidden`."""
        of_chunk = partial(_pair_loss, self.head.logits, self.regularisation)
        return by_chunks(of_chunk, targets.chunk(2)[0], *hidden.chunk(2))


def require_decoder(model: PreTrainedModel, task: str) -> None:
    """Raises ConfigError for a model that sees the tokens it has to predict."""
    if sees_ahead(model):
        raise ConfigError(
            f"model.source: must be a decoder for task={task}, got a {model.config.model_type}, an encoder, whose "
            "tokens see those after them; take a causal language model"
        )


def _pair_loss(
    logits: Callable[[Tensor], Tensor],
    settings: schema.Regularisation,
    targets: Tensor,
    first: Tensor,
    second: Tensor,
) -> Tensor:
    """Half of R-Drop's loss (arXiv:2106.14448, eq. 4): the mean of the cross-entropies, and r_drop / 4 of both KLs."""
    p, q = logits(first).log_softmax(-1), logits(second).log_softmax(-1)
    smoothing = settings.label_smoothing
    losses = [F.cross_entropy(each, targets, reduction="sum", label_smoothing=smoothing) for each in (p, q)]
    divergence = F.kl_div(p, q, reduction="sum", log_target=True) + F.kl_div(q, p, reduction="sum", log_target=True)
    return (losses[0] + losses[1]) / 2 + settings.r_drop / 4 * divergence
