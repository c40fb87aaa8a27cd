"""`varlen` is SDPA on each document alone by the kernel of torch 2.11 and by that of 2.12, whose arguments differ."""

import pytest
import torch
import torch.nn.functional as F

from distft.model import varlen

ENDS = torch.tensor([0, 5, 6, 16], dtype=torch.int32)


def reference(query, key, value, window, causal):
    parts = []
    for start, stop in zip(ENDS[:-1].tolist(), ENDS[1:].tolist(), strict=True):
        distance = torch.arange(stop - start)[:, None] - torch.arange(stop - start)
        seen = (distance >= 0) & (distance < (window or 1000)) if causal else torch.ones_like(distance, dtype=bool)
        q, k, v = (t[start:stop].transpose(0, 1) for t in (query, key, value))
        parts.append(F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=0.3, enable_gqa=True))
    return torch.cat(parts, dim=1).transpose(0, 1)


def kernel_of_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale, window_size):
    """What its docstring says, with a matrix of all tokens."""
    assert query.shape[1] == key.shape[1], "one head of keys a head of queries"
    assert cu_seq_q is cu_seq_k
    assert max_q == max_k == ENDS.diff().max()
    document = torch.bucketize(torch.arange(len(query)), ENDS[1:].long(), right=True)
    distance = torch.arange(len(query))[:, None] - torch.arange(len(query))
    left, right = (reach if reach >= 0 else len(query) for reach in window_size)
    seen = (document[:, None] == document) & (distance <= left) & (distance >= -right)
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), value)


def kernel_of_2_12(query, key, value, *places, enable_gqa=False, **options):
    assert enable_gqa == (query.shape[1] != key.shape[1]), "it refuses groups that are not announced"
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    return kernel_of_2_11(query, key, value, *places, **options)


@pytest.mark.parametrize(("window", "causal"), [(None, True), (3, True), (None, False)])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("kernel", [kernel_of_2_11, kernel_of_2_12])
def test_documents_alone_and_heads_in_groups_by_either_kernel(monkeypatch, kernel, kv_heads, window, causal):
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(16, heads, 8, generator=draw).double() for heads in (4, kv_heads, kv_heads))
    ours = varlen.varlen(query, key, value, ENDS, 10, scale=0.3, window=window, causal=causal)
    torch.testing.assert_close(ours, reference(query, key, value, window, causal))


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_installed_kernel_takes_these_arguments(kv_heads):
    query, key = (torch.empty(16, heads, 8, dtype=torch.bfloat16, device="meta") for heads in (4, kv_heads))
    out = varlen.varlen(query, key, key, ENDS.to("meta"), 10, scale=0.3, window=3, causal=True)
    assert out.shape == query.shape
