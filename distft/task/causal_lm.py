"""Causal language modelling: the loss over a batch of packed documents, and replies to prompts."""

from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from distft.config import schema
from distft.data.corpus import IGNORED, Corpus
from distft.data.loader import Batch
from distft.data.template import Template
from distft.errors import ConfigError
from distft.loss import token_loss, token_losses
from distft.model.architecture import CAUSAL, Architecture
from distft.model.load import Loaded
from distft.task.base import Prompts, Scores, TaskModule

HEAD_CHUNK = 256  # supervised tokens whose logits exist at once where the head is no plain linear layer


class CausalLmTask:
    """Chats, prompts with completions, or plain text."""

    def reader(self, tokenizer: PreTrainedTokenizerFast, data: schema.Data, facts: dict[str, Any] | None) -> Template:
        return Template(tokenizer, data.loss_on)

    def architecture(self, facts: dict[str, Any]) -> Architecture:
        return CAUSAL

    def module(self, loaded: Loaded, facts: dict[str, Any]) -> "CausalLM":
        return CausalLM(loaded.model, loaded.compute_dtype)

    def metrics(self, facts: dict[str, Any]) -> tuple[str, ...]:
        return ()

    def scores(self, outputs: Mapping[int, Any], held_out: Corpus, facts: dict[str, Any]) -> Scores:
        return Scores({})


class CausalLM(TaskModule):
    """A model of `AutoModelForCausalLM`."""

    def __init__(self, model: PreTrainedModel | PeftModel, compute: torch.dtype, facts: dict[str, Any] | None = None):
        super().__init__(model, compute, facts)
        require_decoder(self.base, "causal_lm")

    def loss(self, batch: Batch) -> Tensor:
        """Sum of the batch's token losses."""
        return self._loss(self.encode(batch).flatten(0, 1), batch.targets.flatten())

    def read_outside_its_module(self) -> list[nn.Parameter]:
        return list(self.base.get_output_embeddings().parameters())

    def _loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return head_loss(self.base, hidden, targets)

    def reply(self, prompts: Prompts) -> list[list[int]]:
        return greedy_replies(self.base, prompts, self.compute)


def require_decoder(model: PreTrainedModel, task: str) -> None:
    """Raises ConfigError for a model that sees the tokens it has to predict."""
    if any(getattr(module, "is_causal", True) is False for module in model.base_model.modules()):
        raise ConfigError(
            f"model.source: must be a decoder for task={task}, got a {model.config.model_type}, an encoder, whose "
            "tokens see those after them; take a causal language model"
        )


def head_loss(model: PreTrainedModel, hidden: Tensor, targets: Tensor, factors: Tensor | None = None) -> Tensor:
    """Sum of the token losses, each times its factor, of states `hidden` [N, H] under the model's head."""
    head = model.get_output_embeddings()
    if type(head) is nn.Linear:
        return token_loss(hidden, head.weight, targets, bias=head.bias, **logits_of(model), factors=factors)
    total = hidden.new_zeros((), dtype=torch.float32) + 0 * hidden.sum().float()
    for rows in (targets != IGNORED).nonzero().squeeze(1).split(HEAD_CHUNK):
        share = None if factors is None else factors[rows]
        total = total + checkpoint(_chunk_loss, head, hidden[rows], targets[rows], share, use_reentrant=False)
    return total


@torch.no_grad()
def head_losses(model: PreTrainedModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """The token losses [N] that `head_loss` sums, 0 where there is no target; without gradients."""
    head = model.get_output_embeddings()
    if type(head) is nn.Linear:
        return token_losses(hidden, head.weight, targets, bias=head.bias, **logits_of(model))
    losses = hidden.new_zeros(len(hidden), dtype=torch.float32)
    for rows in (targets != IGNORED).nonzero().squeeze(1).split(HEAD_CHUNK):
        losses[rows] = nn.functional.cross_entropy(head(hidden[rows]).float(), targets[rows], reduction="none")
    return losses


def logits_of(model: PreTrainedModel) -> dict[str, Any]:
    """What the model does to the output of its head, in the words of `token_loss`."""
    config = model.config
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    return {"scale": scale, "softcap": getattr(config, "final_logit_softcapping", None)}


def greedy_replies(model: PreTrainedModel, prompts: Prompts, compute: torch.dtype) -> list[list[int]]:
    """Greedy replies, as token ids."""
    device = next(model.parameters()).device
    usual = model.config._attn_implementation
    model.set_attn_implementation("sdpa")  # one prompt at a time, with a cache
    settings = GenerationConfig(
        max_new_tokens=prompts.max_new_tokens,
        do_sample=False,
        eos_token_id=prompts.eos_ids,
        pad_token_id=prompts.pad_id,
        use_cache=True,
    )
    replies = []
    with torch.autocast(device.type, compute, enabled=compute != torch.float32):
        for ids in prompts.ids:
            prompt = torch.tensor([ids], device=device)
            out = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)
            replies.append(out[0, len(ids) :].tolist())
    model.set_attn_implementation(usual)
    return replies


def _chunk_loss(head: nn.Module, hidden: Tensor, targets: Tensor, factors: Tensor | None) -> Tensor:
    losses = nn.functional.cross_entropy(head(hidden).float(), targets, reduction="none")
    return losses.sum() if factors is None else (losses * factors).sum()
