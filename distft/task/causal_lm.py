"""Causal language modelling: the loss over a batch of packed documents, and replies to prompts."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from distft.config import schema
from distft.data.corpus import Corpus
from distft.data.loader import Batch
from distft.data.template import Template
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

    def loss(self, batch: Batch) -> Tensor:
        """Sum of the batch's token losses."""
        return self._loss(self.encode(batch).flatten(0, 1), batch.targets.flatten())

    def read_outside_its_module(self) -> list[nn.Parameter]:
        return list(self.base.get_output_embeddings().parameters())

    def _loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        head = self.base.get_output_embeddings()
        if type(head) is nn.Linear:
            return token_loss(hidden, head.weight, targets, bias=head.bias, **_of_logits(self.base.config))
        kept = (targets != -100).nonzero().squeeze(1)
        total = hidden.new_zeros((), dtype=torch.float32) + 0 * hidden.sum().float()
        for rows in kept.split(HEAD_CHUNK):
            total = total + checkpoint(_head_loss, head, hidden[rows], targets[rows], use_reentrant=False)
        return total

    def reply(self, prompts: Prompts) -> list[list[int]]:
        causal, device = self.base, next(self.parameters()).device
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
        with torch.autocast(device.type, self.compute, enabled=self.compute != torch.float32):
            for ids in prompts.ids:
                prompt = torch.tensor([ids], device=device)
                out = causal.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)
                replies.append(out[0, len(ids) :].tolist())
        causal.set_attn_implementation(usual)
        return replies


def losses_of_tokens(base: PreTrainedModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """The loss of each of `targets` [N], predicted from `hidden` [N, H]; float32 [N], without gradient."""
    head = base.get_output_embeddings()
    if type(head) is nn.Linear:
        return token_losses(hidden, head.weight, targets, bias=head.bias, **_of_logits(base.config))
    parts = zip(hidden.split(HEAD_CHUNK), targets.split(HEAD_CHUNK), strict=True)
    return torch.cat([nn.functional.cross_entropy(head(h).float(), t, reduction="none") for h, t in parts])


def _of_logits(config: Any) -> dict[str, Any]:
    """What a model does to its logits."""
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    return {"scale": scale, "softcap": getattr(config, "final_logit_softcapping", None)}


def _head_loss(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(head(hidden).float(), targets, reduction="sum")
