"""Preference: of two answers the chosen one becomes likelier than the rejected one, by DPO, IPO, ORPO or SimPO."""

from collections.abc import Mapping
from typing import Any

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
from distft.task.causal_lm import require_decoder
from distft.task.module import TaskModule
from distft.task.pairs import Pairs, margin_scores
from distft.task.seam import Scores


class PreferenceTask:
    def __init__(self, config: schema.Preference):
        self.config = config

    def reader(self, tokenizer: PreTrainedTokenizerFast, data: schema.Data, facts: dict[str, Any] | None) -> Pairs:
        return Pairs(tokenizer, data, self.config.traits.formats)

    def architecture(self, facts: dict[str, Any]) -> Architecture:
        return CAUSAL

    def module(self, loaded: Loaded, facts: dict[str, Any]) -> "Preference":
        return Preference(loaded.model, loaded.compute_dtype, self.config)

    def metrics(self, facts: dict[str, Any]) -> tuple[str, ...]:
        return self.config.traits.metrics

    def scores(self, outputs: Mapping[int, Any], held_out: Corpus, facts: dict[str, Any]) -> Scores:
        return margin_scores(outputs)


class Preference(TaskModule):
    """A causal model that is compared, where the loss wants it, with itself before training.

    That reference is the base with the adapter switched off: there is no second model in memory. A step runs the head
    three times at most and keeps no logits: the answers' log-probabilities are summed first, without gradients; the
    loss's derivatives by them are then what each token's loss counts in a weighted sum.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, compute: torch.dtype, config: schema.Preference):
        super().__init__(model, compute)
        self.config = config
        require_decoder(self.base, config.name)
        if config.has_reference and not isinstance(model, PeftModel):
            raise ConfigError(
                f"adapter: must be one that can be switched off where the base is the reference of "
                f"task.loss={config.loss}; use adapter=lora, or task.loss=simpo"
            )

    def loss(self, batch: Batch) -> Tensor:
        return self._compare(batch)[0]

    def evaluate(self, batch: Batch) -> tuple[Tensor, list[float]]:
        loss, margins = self._compare(batch)
        return loss, margins.tolist()

    def _compare(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The sum of the pairs' losses, and the margins [D]."""
        reference = self._reference(batch) if self.config.has_reference else None
        head, hidden, targets = self.head, self.encode(batch).flatten(0, 1), batch.targets.flatten()
        policy, lengths, owners = answers(head.losses(hidden, targets), batch)
        with torch.enable_grad():
            policy.requires_grad_()
            losses, margins = compare(self.config, policy, lengths, reference)
            (derivatives,) = torch.autograd.grad(losses.sum(), policy)
        value = losses.detach().sum()
        if not torch.is_grad_enabled():
            return value, margins.detach()
        factors = torch.zeros_like(hidden[:, 0], dtype=torch.float32)
        factors[targets != IGNORED] = -derivatives.flatten()[owners]
        weighted = head.loss(hidden, targets, factors=factors)
        return value + (weighted - weighted.detach()), margins.detach()

    @torch.no_grad()
    def _reference(self, batch: Batch) -> Tensor:
        """The answers' log-probabilities [D, 2] under the base, without anybody's dropout."""
        training = self.model.training
        self.model.eval()
        with self.model.disable_adapter():
            losses = self.head.losses(self.encode(batch).flatten(0, 1), batch.targets.flatten())
        self.model.train(training)
        return answers(losses, batch)[0]


def answers(losses: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """From token losses [N]: log-probabilities [D, 2] of the chosen and the rejected answers, their lengths [D, 2] in
    tokens, and for each supervised token, in order, the number of its answer in the flattened [D * 2].
    """
    assert batch.segments is not None
    kept = (batch.targets.flatten() != IGNORED).nonzero().squeeze(1)
    starts = batch.segments[:, :, 0].flatten().contiguous()
    owners = torch.searchsorted(starts, kept, right=True) - 1
    lengths = torch.bincount(owners, minlength=len(starts))
    # By segments: adding by index would sum in another order each time on a GPU.
    sums = torch.segment_reduce(-losses[kept], "sum", lengths=lengths) if len(starts) else losses.new_zeros(0)
    return sums.view(-1, 2), lengths.view(-1, 2), owners


def compare(
    config: schema.Preference, policy: Tensor, lengths: Tensor, reference: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Losses [D] and margins [D] of pairs, from log-probabilities [D, 2] of whole answers.

    A margin is how far the chosen answer's reward is ahead: beta times its log-probability, by token but in DPO, and
    relative to the reference's if there is one.

    DPO (arXiv:2305.18290) with label smoothing as in cDPO; IPO (arXiv:2310.12036), by token as its authors advise;
    ORPO (arXiv:2403.07691); SimPO (arXiv:2405.14734).
    """
    beta = config.strength
    score = policy if reference is None else policy - reference
    score = score if config.loss == "dpo" else score / lengths
    margins = beta * (score[:, 0] - score[:, 1])
    if config.loss == "dpo":
        smoothing = config.label_smoothing
        return -(1 - smoothing) * F.logsigmoid(margins) - smoothing * F.logsigmoid(-margins), margins
    if config.loss == "ipo":
        return (margins / beta - 1 / (2 * beta)).square(), margins
    if config.loss == "simpo":
        return -F.logsigmoid(margins - config.target_margin), margins
    certain = torch.finfo(score.dtype).tiny  # an answer of probability 1 has no finite odds
    log_odds = score - (-torch.expm1(score)).clamp_min(certain).log()
    return -score[:, 0] - beta * F.logsigmoid(log_odds[:, 0] - log_odds[:, 1]), margins
