"""Greedy replies to prompts."""

from dataclasses import dataclass

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel

from distft.model.own_attention import own_attention


@dataclass(frozen=True)
class Prompts:
    """Prompts to reply to, as token ids, one at a time."""

    ids: list[list[int]]
    max_new_tokens: int
    eos_ids: list[int]
    pad_id: int


def greedy_replies(
    model: PreTrainedModel | PeftModel, base: PreTrainedModel, prompts: Prompts, compute: torch.dtype
) -> list[list[int]]:
    """Replies of `model` as token ids. `base`: the causal model of `transformers` in it, adapters inside."""
    device = next(model.parameters()).device
    settings = GenerationConfig(
        max_new_tokens=prompts.max_new_tokens,
        do_sample=False,
        eos_token_id=prompts.eos_ids,
        pad_token_id=prompts.pad_id,
        use_cache=True,
    )
    replies = []
    autocast = torch.autocast(device.type, compute, enabled=compute != torch.float32)
    with own_attention(base), autocast:  # one prompt at a time, with a cache
        for ids in prompts.ids:
            given = torch.tensor([ids], device=device)
            out = model.generate(input_ids=given, attention_mask=torch.ones_like(given), generation_config=settings)
            replies.append(out[0, len(ids) :].tolist())
    return replies
