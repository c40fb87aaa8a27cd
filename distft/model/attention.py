"""Attention within each document of a packed batch, and nothing across documents: causal, or both ways in encoders.

The batch says where documents end; no mask of S x S is ever built. CUDA runs `varlen_attn` (FlashAttention, in torch);
elsewhere documents of like length are padded together and run by SDPA.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverload
from transformers import AttentionInterface

from distft.errors import ConfigError

NAME = "varlen"


def register() -> None:
    """Makes `attn_implementation="varlen"` known to `transformers`, which has no mask for it and so builds none."""
    AttentionInterface.register(NAME, varlen_attention)


def operators() -> list[OpOverload]:
    """The operators whose outputs `gradient_checkpointing: selective` keeps."""
    import torch.nn.attention.varlen

    return [
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_cudnn_attention.default,
        torch.ops.torch_attn._varlen_attn.default,
    ]


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    document_ends: Tensor | None = None,
    document_groups: list[Tensor] | None = None,
    max_document: int | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """`query [B, heads, S, D]`, `key`/`value [B, kv_heads, S, D]` to `[B, S, heads, D]`, as `transformers` wants it.

    `document_ends` `[documents + 1]` are the boundaries over the B*S tokens; `document_groups` what
    `length_groups` makes of them, for SDPA; `max_document` the longest, for FlashAttention. The module's `is_causal`
    says whether a token sees those after it.
    """
    if document_ends is None:
        # Attending over whole rows instead would train on leaked documents, silently.
        raise ConfigError(
            f"model.attention: {type(module).__name__} must be told the documents' boundaries, and this model does not "
            "hand them to its attention; set model.attention=sdpa"
        )
    causal = getattr(module, "is_causal", True)
    if sliding_window and not causal:
        # transformers' masks count such a window from the middle, each model in its own way.
        raise ConfigError(
            f"model.attention: varlen knows no window that looks both ways, which {type(module).__name__} has; "
            "set model.attention=sdpa and data.packing=false"
        )
    batch, heads, length, head_dim = query.shape
    q, k, v = (t.transpose(1, 2).reshape(batch * length, -1, head_dim) for t in (query, key, value))
    if query.is_cuda and not dropout:  # FlashAttention in torch has no dropout
        assert max_document is not None
        out = _flash(q, k, v, document_ends, max_document, scaling, causal, sliding_window)
    else:
        groups = document_groups or [group.to(query.device) for group in length_groups(document_ends.cpu())]
        out = _by_length(q, k, v, groups, scaling, causal, sliding_window, dropout)
    return out.view(batch, length, heads, head_dim), None


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: Tensor,
    longest: int,
    scaling: float | None,
    causal: bool,
    window: int | None,
) -> Tensor:
    from distft.model.varlen import varlen

    return varlen(query, key, value, ends, longest, scale=scaling, window=window, causal=causal)


def length_groups(document_ends: Tensor) -> list[Tensor]:
    """Documents grouped by length (within a factor of 1.25, so padding stays under a fifth).

    Each group is an index `[documents, longest]` into the flat tokens; the places past a document's end repeat its last
    token, which causality (or a mask) hides from the real ones.
    """
    starts = document_ends[:-1].long()
    lengths = document_ends.diff().long()
    order = lengths.argsort(descending=True, stable=True)
    groups: list[Tensor] = []
    while len(order):
        longest = lengths[order[0]]
        same = lengths[order] * 5 >= longest * 4
        chosen, order = order[same], order[~same]
        offsets = torch.arange(int(longest)).expand(len(chosen), -1)
        groups.append(starts[chosen, None] + offsets.minimum(lengths[chosen, None] - 1))
    return groups


def _by_length(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    groups: list[Tensor],
    scaling: float | None,
    causal: bool,
    window: int | None,
    dropout: float,
) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    rows, results = [], []
    for index in groups:
        # index_select: its backward adds rows in parallel, that of indexing one element after another.
        flat = index.flatten()
        q, k, v = (t.index_select(0, flat).unflatten(0, index.shape).transpose(1, 2) for t in (query, key, value))
        real = torch.ones_like(index, dtype=torch.bool)
        real[:, 1:] = index[:, 1:] != index[:, :-1]
        mask = None
        if not causal:
            mask = None if real.all() else real[:, None, None]
        elif window and window < index.shape[1]:
            mask = _window_mask(index.shape[1], window).to(query.device)
        plain = causal and mask is None
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=plain, scale=scaling, enable_gqa=grouped, dropout_p=dropout
        )
        rows.append(index[real])
        results.append(out.transpose(1, 2)[real])
    # One gather puts the tokens back in order: a scatter into a fresh tensor would be one more pass in the backward.
    return torch.cat(results)[torch.cat(rows).argsort()]


def _window_mask(length: int, window: int) -> Tensor:
    distance = torch.arange(length)[:, None] - torch.arange(length)
    return (distance >= 0) & (distance < window)
