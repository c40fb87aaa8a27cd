"""Attention as `transformers` itself computes it: what a model is compared with, and what it generates by."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import nn
from transformers import PreTrainedModel


def own_implementation(model: nn.Module) -> Literal["sdpa", "eager"]:
    """The implementation of transformers that computes what the model is defined as.

    `sdpa` where every model in it is said to support that. Soft-caps, sinks and attention written into the model have
    the one in its own file only.
    """
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    # In older releases some are said to support sdpa that caps no scores (seen: Gemma 2 on 5.16).
    caps = any(getattr(part.config, "attn_logit_softcapping", None) for part in parts)
    return "eager" if caps or not all(part._supports_sdpa for part in parts) else "sdpa"


@contextmanager
def own_attention(model: PreTrainedModel) -> Iterator[None]:
    """Runs `model` by that implementation meanwhile."""
    usual, own = model.config._attn_implementation, own_implementation(model)
    _set(model, own)
    try:
        yield
    finally:
        _set(model, usual)


def _set(model: PreTrainedModel, implementation: str) -> None:
    if type(model)._can_set_attn_implementation():
        model.set_attn_implementation(implementation)
    else:  # its layers are what they were built as; its masks follow the config
        model.config._attn_implementation = implementation
