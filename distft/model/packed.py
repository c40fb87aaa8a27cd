"""Hidden states of packed documents, which lie side by side without padding and do not see each other."""

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from distft.errors import ConfigError
from distft.model import attention


def hidden_states(
    model: PreTrainedModel,
    input_ids: Tensor,
    position_ids: Tensor,
    ends: Tensor,
    longest: int,
    separator: int | None = None,
) -> Tensor:
    """Last hidden states [B, S, H] of rows of documents: `position_ids`, `ends` and `longest` as in a `Batch`.

    `separator`: the token that ends the first of two texts, where token types tell the model which is which.
    """
    return model.base_model(
        input_ids=input_ids,
        position_ids=position_ids + first_position(model),
        **({"use_cache": False} if hasattr(model.config, "use_cache") else {}),
        **({} if separator is None else {"token_type_ids": _token_types(input_ids, ends, separator)}),
        **documents(model, ends, longest),
    ).last_hidden_state


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
    if any(getattr(module, "is_causal", True) is False for module in model.base_model.modules()):
        raise ConfigError(
            f"model.attention: must be varlen or flash_attention_2 for an encoder, whose documents lie side by "
            f"side without padding, got {implementation}; set model.attention=varlen"
        )
    return {}  # mask-based attention reads the boundaries off the positions, which restart


def _token_types(input_ids: Tensor, ends: Tensor, separator: int) -> Tensor:
    """1 for what follows the first separator of its document: the second text of a pair."""
    separators = (input_ids == separator).flatten().long()
    before = separators.cumsum(0) - separators
    in_document = before - before[ends[:-1].long()].repeat_interleave(ends.diff().long())
    return in_document.clamp(max=1).view_as(input_ids)
