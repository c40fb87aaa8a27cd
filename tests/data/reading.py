"""Chats, completions and texts prepared as `task=causal_lm` reads them."""

from collections.abc import Callable

from transformers import PreTrainedTokenizerFast

from distft.config import schema
from distft.data import prepare as module
from distft.data.prepare import Prepared
from distft.task.chat import Template


def prepare(
    data: schema.Data, tokenizer: PreTrainedTokenizerFast, *, poll: Callable[[], None] = lambda: None
) -> Prepared:
    return module.prepare(data, Template(tokenizer, data.loss_on), poll=poll)
