"""Hidden states of packed documents, which lie side by side without padding and do not see each other.

Where a model cannot be told where documents end (layers that carry a state from token to token, attention of its own),
each document is a row of its own for it, padded; what comes out lies side by side again.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from distft.model import attention

Forward = Callable[..., Tensor]
"""A forward pass of the model by its own keyword arguments, to hidden states [B, S, H]."""


def side_by_side(
    model: PreTrainedModel,
    forward: Forward,
    input_ids: Tensor,
    position_ids: Tensor,
    ends: Tensor,
    longest: int,
    separator: int | None = None,
) -> Tensor:
    """Hidden states [B, S, H] of rows of documents: `position_ids`, `ends` and `longest` as in a `Batch`.

    `separator`: the token that ends the first of two texts, where token types tell the model which is which.
    """
    return forward(
        input_ids=input_ids,
        position_ids=position_ids + first_position(model),
        **without_cache(model),
        **({} if separator is None else {"token_type_ids": _token_types(input_ids, ends, separator)}),
        **documents(model, ends, longest),
    )


def one_a_row(
    model: PreTrainedModel,
    forward: Forward,
    input_ids: Tensor,
    ends: Tensor,
    separator: int | None = None,
    embeds: bool = False,
) -> Tensor:
    """The same hidden states, each document padded in a row of its own: a few forward passes, as many on every rank.

    No pass is larger than the rows were, or than the longest document. `embeds`: tokens go in as their embeddings, made
    of the rows as they are, for hooks that know the rows.
    """
    flat = input_ids.flatten()
    types = None if separator is None else _token_types(input_ids, ends, separator).flatten()
    embedded = model.get_input_embeddings()(input_ids).flatten(0, 1) if embeds else None
    both_ways = sees_ahead(model)
    groups = _groups(ends, len(flat))
    places, results = [], []
    for index, real in groups + _idle(len(groups), flat.device):
        given = {"input_ids": flat[index]} if embedded is None else {"inputs_embeds": embedded[index]}
        if both_ways:
            given["attention_mask"] = real.long()
        if types is not None:
            given["token_type_ids"] = types[index]
        states = forward(**given, **without_cache(model))
        places.append(index[real])
        results.append(states[real] if real.any() else states[:0].flatten(0, 1) + 0 * states.sum())
    return torch.cat(results)[torch.cat(places).argsort()].view(*input_ids.shape, -1)


def _groups(ends: Tensor, budget: int) -> list[tuple[Tensor, Tensor]]:
    """Documents of like length as rows of at most `budget` places: an index [documents, longest] into the flat tokens,
    and which places are real. A place past its document's end repeats the last token."""
    lengths = ends.diff().long()
    order = lengths.argsort(descending=True, stable=True)
    groups = []
    while len(order):
        longest = int(lengths[order[0]])
        chosen, order = order.tensor_split([max(1, budget // longest)])
        places = torch.arange(longest, device=ends.device).expand(len(chosen), -1)
        real = places < lengths[chosen, None]
        groups.append((ends[:-1].long()[chosen, None] + places.minimum(lengths[chosen, None] - 1), real))
    return groups


def _idle(passes: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Passes without a document: a sharded model gathers its weights in each, so that all ranks must make as many."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return []
    most = torch.tensor(passes, device=device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    nothing = torch.zeros(1, 1, dtype=torch.long, device=device)
    return [(nothing, nothing.bool())] * (int(most) - passes)


def without_cache(model: PreTrainedModel) -> dict[str, Any]:
    return {"use_cache": False} if hasattr(model.config, "use_cache") else {}


def takes_positions(model: PreTrainedModel) -> bool:
    """Whether the model can be told that positions restart."""
    return "position_ids" in inspect.signature(model.base_model.forward).parameters


def sees_ahead(model: PreTrainedModel) -> bool:
    """Whether tokens see those after them: an encoder."""
    return any(getattr(module, "is_causal", True) is False for module in model.base_model.modules())


def first_position(model: PreTrainedModel) -> int:
    """RoBERTa and its kin count positions from one past the padding token's id."""
    embeddings = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding = getattr(embeddings, "padding_idx", None)
    return 0 if padding is None else padding + 1


def documents(model: PreTrainedModel, ends: Tensor, longest: int) -> dict[str, Any]:
    """The documents' boundaries in the words of the attention in use."""
    implementation = model.config._attn_implementation
    if implementation == attention.NAME:
        groups = None if ends.is_cuda else attention.length_groups(ends)
        return {"document_ends": ends, "document_groups": groups, "max_document": longest}
    if implementation.startswith("flash"):
        return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
    return {}  # mask-based attention reads the boundaries off the positions, which restart


def _token_types(input_ids: Tensor, ends: Tensor, separator: int) -> Tensor:
    """1 for what follows the first separator of its document: the second text of a pair."""
    separators = (input_ids == separator).flatten().long()
    before = separators.cumsum(0) - separators
    in_document = before - before[ends[:-1].long()].repeat_interleave(ends.diff().long())
    return in_document.clamp(max=1).view_as(input_ids)
