"""The token that fills the rows of a batch."""

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast


def padding_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, rows: list[Tensor]) -> int | None:
    """What `model` is to pad with: the tokenizer's own, or where there is none, the base's.

    A decoder that classifies reads the last token that is no padding: where rows end with the padding token another
    special token takes its place, in `tokenizer` too.
    """
    own = tokenizer.pad_token_id
    if model.can_generate() or model.config.is_encoder_decoder:
        return model.config.pad_token_id if own is None else own
    last = {int(row[0, -1]) for row in rows}
    candidates = [own, tokenizer.unk_token_id, tokenizer.bos_token_id, *tokenizer.all_special_ids]
    pad = next((each for each in candidates if each is not None and each not in last), model.config.pad_token_id)
    if pad is not None and pad != own:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    return pad
