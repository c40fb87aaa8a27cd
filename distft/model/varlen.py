"""FlashAttention over documents laid end to end, by torch's `varlen_attn`, whose arguments change between releases."""

from collections.abc import Callable
from functools import cache
from inspect import signature
from typing import Any

from torch import Tensor
from torch.nn.attention.varlen import varlen_attn


@cache
def _takes_groups(kernel: Callable[..., Any]) -> bool:
    """Whether it takes fewer heads of keys than of queries: from torch 2.12 on."""
    return "enable_gqa" in signature(kernel).parameters


def varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: Tensor,
    longest: int,
    *,
    scale: float | None,
    window: int | None,
    causal: bool,
) -> Tensor:
    """`query [tokens, heads, D]`, `key`/`value [tokens, kv_heads, D]` to `[tokens, heads, D]`, CUDA only.

    `ends` `[documents + 1]`, int32, are the documents' boundaries, `longest` the longest document. A causal token sees
    `window` tokens, itself among them; None: all before it.
    """
    reach = (window - 1 if window else -1, 0 if causal else -1)  # to the left, to the right
    groups: dict[str, Any] = {}
    if query.shape[1] != key.shape[1]:
        if _takes_groups(varlen_attn):
            groups = {"enable_gqa": True}
        else:
            repeats = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    out = varlen_attn(query, key, value, ends, ends, longest, longest, scale=scale, window_size=reach, **groups)
    assert isinstance(out, Tensor)
    return out
