"""Causal language modelling: the model, its loss over a batch of documents, and its replies to prompts.

An engine wraps the task whole, so that everything that touches parameters runs inside the root's forward pass.
"""

import json
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import GenerationConfig, PreTrainedModel

from distft.config import schema
from distft.data.loader import Batch
from distft.location import choose
from distft.loss import token_loss
from distft.model import attention
from distft.model.adapter import ADAPTER

HEAD_CHUNK = 256  # supervised tokens whose logits exist at once where the head is no plain linear layer


@dataclass(frozen=True)
class Prompts:
    """Prompts to reply to, as token ids, one at a time."""

    ids: list[list[int]]
    max_new_tokens: int
    eos_ids: list[int]
    pad_id: int


class CausalLM(nn.Module):
    """A model of `AutoModelForCausalLM` (maybe under PEFT) with its loss inside."""

    def __init__(self, model: PreTrainedModel | PeftModel, compute: torch.dtype):
        super().__init__()
        self.model = model
        self.compute = compute

    @property
    def causal(self) -> PreTrainedModel:
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def forward(self, batch: Batch | Prompts) -> Any:
        """Sum of the batch's token losses (0-dim, float32), or the replies to the prompts."""
        if isinstance(batch, Prompts):
            return self._reply(batch)
        with torch.autocast(batch.input_ids.device.type, self.compute, enabled=self.compute != torch.float32):
            hidden = self.causal.base_model(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                use_cache=False,
                **self._documents(batch.document_ends, batch.max_document),
            ).last_hidden_state
            return self._loss(hidden.flatten(0, 1), batch.targets.flatten())

    @property
    def weights_file(self) -> str:
        """Stem of the file that holds what trains, as its readers expect it."""
        return "adapter_model" if isinstance(self.model, PeftModel) else "model"

    def describe(self, source: schema.Model) -> dict[str, str]:
        """The small files that make a folder of weights loadable, by name."""
        if not isinstance(self.model, PeftModel):
            return {"config.json": self.causal.config.to_json_string()}
        settings = self.model.peft_config[ADAPTER].to_dict()
        settings |= {"inference_mode": True, "base_model_name_or_path": choose(source.source)}
        return {"adapter_config.json": json.dumps(settings, indent=2, default=sorted, sort_keys=True)}

    def trainable(self) -> dict[str, nn.Parameter]:
        """What trains, by the name it has in a checkpoint: PEFT's own, or the model's under `adapter=full`."""
        parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if not isinstance(self.model, PeftModel):
            return parameters
        # PEFT knows its names; tensors of distinct sizes on meta tell which became which.
        marks = {name: torch.empty(i, device="meta") for i, name in enumerate(parameters)}
        renamed = get_peft_model_state_dict(
            self.model, state_dict=marks, adapter_name=ADAPTER, save_embedding_layers=False
        )
        in_order = list(parameters.values())
        assert len(renamed) == len(in_order), "PEFT saves other parameters than those that train"
        return {name: in_order[mark.numel()] for name, mark in renamed.items()}

    def head_parameters(self) -> list[nn.Parameter]:
        return list(self.causal.get_output_embeddings().parameters())

    def _documents(self, ends: Tensor, longest: int) -> dict[str, Any]:
        """The documents' boundaries in the words of the attention in use."""
        implementation = self.causal.config._attn_implementation
        if implementation == attention.NAME:
            groups = None if ends.is_cuda else attention.length_groups(ends)
            return {"document_ends": ends, "document_groups": groups, "max_document": longest}
        if implementation.startswith("flash"):
            return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
        return {}  # mask-based attention reads the boundaries off the positions, which restart

    def _loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        head, config = self.causal.get_output_embeddings(), self.causal.config
        if type(head) is nn.Linear:
            scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
            softcap = getattr(config, "final_logit_softcapping", None)
            return token_loss(hidden, head.weight, targets, bias=head.bias, scale=scale, softcap=softcap)
        kept = (targets != -100).nonzero().squeeze(1)
        total = hidden.new_zeros((), dtype=torch.float32) + 0 * hidden.sum().float()
        for rows in kept.split(HEAD_CHUNK):
            total = total + checkpoint(_head_loss, head, hidden[rows], targets[rows], use_reentrant=False)
        return total

    def _reply(self, prompts: Prompts) -> list[list[int]]:
        causal, device = self.causal, next(self.parameters()).device
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


def _head_loss(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(head(hidden).float(), targets, reduction="sum")
