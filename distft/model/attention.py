"""Attention within each document of a packed batch, and nothing across documents: causal, or both ways in encoders.

The batch says where documents end; no mask of S x S is ever built. CUDA runs `varlen_attn` (FlashAttention, in torch),
or FlexAttention for caps and sinks; elsewhere documents of like length are padded together and run by SDPA.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverload
from transformers import AttentionInterface

from distft.errors import ConfigError

NAME = "varlen"
HARMLESS = {
    "cache_position",
    "deterministic",
    "logits_to_keep",
    "num_items_in_batch",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "position_ids",
    "return_dict",
    "use_cache",
}
"""What models hand their attention that does not change what it computes where positions are applied already."""


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


_unmet: list[str] | None = None


@contextmanager
def trial() -> Iterator[list[str]]:
    """Attention meanwhile only notes what it cannot do, and computes on: an engine amid a model's forward pass must see
    its end."""
    global _unmet
    _unmet = []
    try:
        yield _unmet
    finally:
        _unmet = None


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    document_ends: Tensor | None = None,
    document_groups: list[Tensor] | None = None,
    max_document: int | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """`query [B, heads, S, D]`, `key [B, kv_heads, S, D]`, `value [B, kv_heads, S, E]` to `[B, S, heads, E]`, as
    `transformers` wants it.

    `document_ends` `[documents + 1]` are the boundaries over the B*S tokens; `document_groups` what
    `length_groups` makes of them, for SDPA; `max_document` the longest, for FlashAttention. The module's `is_causal`
    says whether a token sees those after it. `softcap` c bounds scores as c * tanh(score / c); `s_aux` [heads] are
    sinks: one more score in each softmax, of a key without a value (arXiv:2309.17453).

    Raises ConfigError for what it does not compute, which would else train on another loss in silence.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    given = {name for name, value in others.items() if value is not None and value is not False}
    unknown = sorted(given - HARMLESS)
    if attention_mask is not None:
        unknown.append("a mask of its own")
    if document_ends is None:
        _cannot(module, "must be told the documents' boundaries, and this model does not hand them to its attention")
        document_ends = torch.tensor([0, query.shape[0] * query.shape[2]], dtype=torch.int32, device=query.device)
        document_groups, max_document = None, query.shape[0] * query.shape[2]
    if unknown:
        _cannot(module, f"gives its attention {', '.join(unknown)}, which varlen does not compute")
    if sliding_window and not causal:
        # transformers' masks count such a window from the middle, each model in its own way.
        _cannot(module, "has a window that looks both ways, which varlen does not know")
    batch, heads, length, _ = query.shape
    q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (query, key, value))
    bends = softcap is not None or s_aux is not None
    if query.is_cuda and not dropout and bends:
        out = _flex(q, k, v, document_ends, scaling, causal, sliding_window, softcap, s_aux)
    elif query.is_cuda and not dropout and query.shape[-1] == value.shape[-1]:  # FlashAttention in torch has no dropout
        assert max_document is not None
        out = _flash(q, k, v, document_ends, max_document, scaling, causal, sliding_window)
    else:
        groups = document_groups or [group.to(query.device) for group in length_groups(document_ends.cpu())]
        out = _by_length(q, k, v, groups, scaling, causal, sliding_window, dropout, softcap, s_aux)
    return out.view(batch, length, heads, -1), None


def _cannot(module: nn.Module, why: str) -> None:
    told = f"{type(module).__name__} {why}"
    if _unmet is None:
        raise ConfigError(f"model.attention: varlen cannot run this model: {told}; set model.attention=auto")
    _unmet.append(told)


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


@lru_cache(maxsize=4)  # of one batch's boundaries for each kind of layer
def _block_mask(ends: Tensor, causal: bool, window: int | None) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    length = int(ends[-1])
    document = torch.searchsorted(ends[1:].contiguous(), torch.arange(length, device=ends.device), right=True)

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        same = document[q] == document[k]
        if causal:
            same = same & (q >= k)
        return same & (q - k < window) if window else same

    return create_block_mask(seen, None, None, length, length, device=str(ends.device))


def _flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: Tensor,
    scaling: float | None,
    causal: bool,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """By FlexAttention (arXiv:2412.05496). A sink leaves the others a share of what their softmax gives."""
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    def capped(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)  # type: ignore[operator]

    run = _compiled_flex() if query.is_cuda else flex_attention
    out, aux = run(
        *(t.transpose(0, 1).unsqueeze(0) for t in (query, key, value)),
        score_mod=None if softcap is None else capped,
        block_mask=_block_mask(ends, causal, window),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        return_aux=AuxRequest(lse=True),
    )
    if sinks is not None:
        share = torch.sigmoid(aux.lse - sinks.float()[None, :, None])
        out = out * share.unsqueeze(-1).to(out.dtype)
    return out.squeeze(0).transpose(0, 1)


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
    softcap: float | None = None,
    sinks: Tensor | None = None,
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
        if softcap is not None or sinks is not None:
            if causal and mask is None:
                mask = _window_mask(index.shape[1], index.shape[1]).to(query.device)
            out = _bent(q, k, v, mask, scaling, dropout, softcap, sinks)
        else:
            plain = causal and mask is None
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=plain, scale=scaling, enable_gqa=grouped, dropout_p=dropout
            )
        rows.append(index[real])
        results.append(out.transpose(1, 2)[real])
    # One gather puts the tokens back in order: a scatter into a fresh tensor would be one more pass in the backward.
    return torch.cat(results)[torch.cat(rows).argsort()]


def _bent(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """[D, heads, L, E]: attention whose scores are capped, and whose softmax has a sink, written out."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(repeats, 1) for t in (key, value))
    scores = query @ key.transpose(2, 3) * (scaling if scaling is not None else query.shape[-1] ** -0.5)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.float()
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sinks is not None:
        sink = sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sink], -1)
    weights = scores.softmax(-1)[..., : key.shape[2]]
    return F.dropout(weights, dropout).to(value.dtype) @ value


def _window_mask(length: int, window: int) -> Tensor:
    distance = torch.arange(length)[:, None] - torch.arange(length)
    return (distance >= 0) & (distance < window)
