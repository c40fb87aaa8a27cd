"""Virtual tokens before each row: prompt tuning (arXiv:2104.08691), P-tuning (2103.10385), prefix tuning (2101.00190).

PEFT's own forward pass of these goes through the full logits; this is the same up to the hidden states.
"""

import torch
from peft import PeftModel
from peft.utils import PeftType
from torch import Tensor, nn

from distft.model.adapter.peft_methods import ADAPTER
from distft.model.packed import Forward, documents, without_cache


def is_prompt_learning(model: nn.Module) -> bool:
    return isinstance(model, PeftModel) and model.peft_config[ADAPTER].is_prompt_learning


def hidden_states(
    model: PeftModel,
    forward: Forward,
    input_ids: Tensor,
    position_ids: Tensor,
    ends: Tensor,
    longest: int,
    *,
    padded: bool,
) -> Tensor:
    """Hidden states `[B, S, H]` of the rows' own tokens, by a `forward` pass of the base.

    Each row is one document, and padding after it: `position_ids`, `ends` and `longest` as in a `Batch`. `padded`: the
    model is not told where documents end, and need not be.
    """
    settings = model.peft_config[ADAPTER]
    num_virtual = settings.num_virtual_tokens
    prompt = model.get_prompt(batch_size=len(input_ids))
    if settings.peft_type == PeftType.PREFIX_TUNING:
        seen = torch.ones(len(input_ids), num_virtual + input_ids.shape[1], dtype=torch.long, device=input_ids.device)
        return forward(
            input_ids=input_ids,
            attention_mask=seen,
            position_ids=position_ids + num_virtual,
            past_key_values=prompt,
            use_cache=False,
        )
    embedded = model.get_base_model().get_input_embeddings()(input_ids)
    tokens = torch.cat([prompt.to(embedded.dtype), embedded], dim=1)
    if padded:
        return forward(inputs_embeds=tokens, **without_cache(model.get_base_model()))[:, num_virtual:]
    in_document = (position_ids == 0).cumsum(1) == 1
    before = torch.arange(num_virtual, device=input_ids.device).expand(len(input_ids), -1)
    rows_up_to = -(-ends // input_ids.shape[1])
    return forward(
        inputs_embeds=tokens,
        position_ids=torch.cat([before, position_ids + num_virtual * in_document], dim=1),
        use_cache=False,
        **documents(model.get_base_model(), ends + num_virtual * rows_up_to, longest + num_virtual),
    )[:, num_virtual:]
