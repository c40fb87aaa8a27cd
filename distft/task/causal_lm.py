"""Causal language modelling: the loss over a batch of packed documents, and replies to prompts."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from distft.config import schema
from distft.data.corpus import IGNORED, Corpus
from distft.data.loader import Batch
from distft.errors import ConfigError
from distft.model.architecture import CAUSAL, Architecture
from distft.model.load import Loaded
from distft.task.chat import Template
from distft.task.loss import likeliest_tokens, token_loss, token_losses
from distft.task.module import Prompts, TaskModule
from distft.task.seam import Scores

HEAD_CHUNK = 256  # supervised tokens whose logits exist at once where the head is no plain linear layer


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
        right[kept] = (likeliest(self.base, hidden.index_select(0, kept)) == targets[kept]).long()
        found = torch.stack([right, (targets != IGNORED).long()], 1)
        assert batch.segments is not None
        bounds = batch.segments[:, 0, 0], batch.segments[:, -1, 1]
        each = [found[start:stop].sum(0).tolist() for start, stop in zip(*(b.tolist() for b in bounds), strict=True)]
        return self._loss(hidden, targets), each

    def read_outside_its_module(self) -> list[nn.Parameter]:
        return list(self.base.get_output_embeddings().parameters())

    def _loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return head_loss(self.base, hidden, targets, smoothing=self.smoothing)

    def _pair_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """R-Drop's loss over the same tokens under two dropout masks, one after the other in `hidden`."""
        logits = partial(_logits, *head_of(self.base))
        return _by_chunks(partial(_pair_loss, logits, self.regularisation), targets.chunk(2)[0], *hidden.chunk(2))

    def reply(self, prompts: Prompts) -> list[list[int]]:
        return greedy_replies(self, prompts)


def require_decoder(model: PreTrainedModel, task: str) -> None:
    """Raises ConfigError for a model that sees the tokens it has to predict."""
    if any(getattr(module, "is_causal", True) is False for module in model.base_model.modules()):
        raise ConfigError(
            f"model.source: must be a decoder for task={task}, got a {model.config.model_type}, an encoder, whose "
            "tokens see those after them; take a causal language model"
        )


def head_loss(
    model: PreTrainedModel, hidden: Tensor, targets: Tensor, *, smoothing: float = 0.0, factors: Tensor | None = None
) -> Tensor:
    """Sum of the token losses, each times its factor, of states `hidden` [N, H] under the model's head."""
    head, scale, softcap = head_of(model)
    if type(head) is nn.Linear:
        return token_loss(
            hidden,
            head.weight,
            targets,
            bias=head.bias,
            scale=scale,
            softcap=softcap,
            smoothing=smoothing,
            factors=factors,
        )
    of_chunk = partial(_head_loss, partial(_logits, head, scale, softcap), smoothing)
    return _by_chunks(of_chunk, targets, *([hidden] if factors is None else [hidden, factors]))


@torch.no_grad()
def head_losses(model: PreTrainedModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """The token losses [N] that `head_loss` sums, 0 where there is no target; without gradients."""
    head, scale, softcap = head_of(model)
    if type(head) is nn.Linear:
        return token_losses(hidden, head.weight, targets, bias=head.bias, scale=scale, softcap=softcap)
    losses = hidden.new_zeros(len(hidden), dtype=torch.float32)
    for rows in (targets != IGNORED).nonzero().squeeze(1).split(HEAD_CHUNK):
        losses[rows] = F.cross_entropy(_logits(head, scale, softcap, hidden[rows]), targets[rows], reduction="none")
    return losses


@torch.no_grad()
def likeliest(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The token [N] that the model's head gives the largest logit, of states [N, H]."""
    head, scale, softcap = head_of(model)
    if type(head) is nn.Linear:
        return likeliest_tokens(hidden, head.weight, bias=head.bias)
    parts = [_logits(head, scale, softcap, part).argmax(-1) for part in hidden.split(HEAD_CHUNK)]
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.long)


def head_of(model: PreTrainedModel) -> tuple[nn.Module, float, float | None]:
    """The head, and what its logits are multiplied by and capped at."""
    config = model.config
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    return model.get_output_embeddings(), scale, getattr(config, "final_logit_softcapping", None)


def capped(logits: Tensor, scale: float, softcap: float | None) -> Tensor:
    """What the model makes of its head's output, in float32."""
    logits = logits.float() * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def greedy_replies(module: TaskModule, prompts: Prompts) -> list[list[int]]:
    """Greedy replies, as token ids."""
    causal, device = module.base, next(module.parameters()).device
    model = module.model if module.has_prompt else causal
    usual = causal.config._attn_implementation
    causal.set_attn_implementation("sdpa")  # one prompt at a time, with a cache
    settings = GenerationConfig(
        max_new_tokens=prompts.max_new_tokens,
        do_sample=False,
        eos_token_id=prompts.eos_ids,
        pad_token_id=prompts.pad_id,
        use_cache=True,
    )
    replies = []
    with torch.autocast(device.type, module.compute, enabled=module.compute != torch.float32):
        for ids in prompts.ids:
            given = torch.tensor([ids], device=device)
            out = model.generate(input_ids=given, attention_mask=torch.ones_like(given), generation_config=settings)
            replies.append(out[0, len(ids) :].tolist())
    causal.set_attn_implementation(usual)
    return replies


def _by_chunks(loss: Callable[..., Tensor], targets: Tensor, *of_tokens: Tensor) -> Tensor:
    """The sum of `loss(targets, *of_tokens)` over the supervised tokens, HEAD_CHUNK of them at once."""
    total = torch.zeros((), dtype=torch.float32, device=targets.device) + 0 * of_tokens[0].sum().float()
    for rows in (targets != IGNORED).nonzero().squeeze(1).split(HEAD_CHUNK):
        total = total + checkpoint(loss, targets[rows], *(part[rows] for part in of_tokens), use_reentrant=False)
    return total


def _logits(head: nn.Module, scale: float, softcap: float | None, hidden: Tensor) -> Tensor:
    return capped(head(hidden), scale, softcap)


def _head_loss(
    logits: Callable[[Tensor], Tensor],
    smoothing: float,
    targets: Tensor,
    hidden: Tensor,
    factors: Tensor | None = None,
) -> Tensor:
    losses = F.cross_entropy(logits(hidden), targets, reduction="none", label_smoothing=smoothing)
    return losses.sum() if factors is None else (losses * factors).sum()


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
