"""The tokens that end a reply: what a model is trained to stop with."""

from transformers import PreTrainedTokenizerFast

from distft.errors import ConfigError
from distft.task.chat import Template

CHAT = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello"}]


def reply_ends(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The special token that closes an assistant's turn in the chat template, as training supervises it, and the
    tokenizer's end of text: that of rows which are no chats."""
    closing = _closes_a_turn(tokenizer) if tokenizer.chat_template else None
    return [end for end in dict.fromkeys([closing, tokenizer.eos_token_id]) if end is not None]


def _closes_a_turn(tokenizer: PreTrainedTokenizerFast) -> int | None:
    reader = Template(tokenizer)
    try:
        (reading,) = reader.documents([{"messages": CHAT}], "chat")
    except ConfigError:  # several templates, none of them the default
        return None
    if not isinstance(reading, list):
        return None
    ids, supervised = reading[0].ids.tolist(), reading[0].labels.nonzero()[0]
    if not len(supervised):
        return None
    last = int(supervised[-1])
    # A template that marks what it generates may leave the token that closes the turn out of the mark.
    end = last + 1 if ids[last] in reader.special else reader.end_of_turn(ids, last + 1)
    return ids[end - 1] if ids[end - 1] in reader.special else None
