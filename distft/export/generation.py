"""How an export generates: the base's own settings, with the ends that training taught."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import cached_file

from distft.config import schema
from distft.model.hf_config import read_hf_config
from distft.runtime.location import choose, locate

logger = logging.getLogger(__name__)

FILE = "generation_config.json"

MODES = ("do_sample", "num_beams", "use_cache", "return_dict_in_generate")
"""Entries that choose how tokens are decoded, by which the others are judged."""
UNJUDGED = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "cache_implementation")
"""Entries that say nothing of how: tokens of the model, and what its device has to have."""


def generation_config(model: schema.Model, tokenizer: PreTrainedTokenizerFast, ends: list[int]) -> GenerationConfig:
    """The base's own, without entries that its way of decoding has no use for; replies end at `ends` too.

    It can be saved, and `generate` takes it: what transformers refuses of it is left out, with a warning.
    """
    given = _of_base(model)
    kept = {name: given.pop(name) for name in (*MODES, *UNJUDGED) if name in given}
    if kept.get("do_sample") and given.get("temperature") == 0:  # no temperature of sampling: it means the likeliest
        kept["do_sample"] = False
    judge = _judge(read_hf_config(model).get_text_config().vocab_size)
    for name, value in given.items():
        reason = _refusal(judge, {**{mode: kept[mode] for mode in MODES if mode in kept}, name: value})
        if reason is None:
            kept[name] = value
        else:
            logger.warning("generation_config: %s=%s of the base is left out: %s", name, value, reason)
    settings = GenerationConfig(**kept)
    known = settings.eos_token_id
    before = [] if known is None else known if isinstance(known, list) else [known]
    settings.eos_token_id = list(dict.fromkeys([*before, *ends])) or None
    if tokenizer.pad_token_id is not None:
        settings.pad_token_id = tokenizer.pad_token_id
    if settings.bos_token_id is None:
        settings.bos_token_id = tokenizer.bos_token_id
    return settings


def _of_base(model: schema.Model) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if model.random_init is None:
        source = locate(choose(model.source)) or choose(model.source)
        file = None
        if not Path(source).is_file():  # a GGUF file has none
            file = cached_file(source, FILE, revision=model.revision, _raise_exceptions_for_missing_entries=False)
        if file is None:
            settings = GenerationConfig.from_model_config(read_hf_config(model)).to_diff_dict()
        else:  # as it stands: transformers refuses to read what `_refusal` is to judge
            settings = json.loads(Path(file).read_text(encoding="utf-8"))
    about = ("transformers_version", "_from_model_config", "_commit_hash")
    return {name: value for name, value in settings.items() if value is not None and name not in about}


def _refusal(judge: LlamaForCausalLM, entries: dict[str, Any]) -> str | None:
    """What transformers has against one entry beside the mode of decoding, in saving or in generating."""
    try:
        settings = GenerationConfig(**entries)
        settings.validate(strict=True)
        settings.max_new_tokens, settings.pad_token_id = 1, 0
        judge.generate(torch.tensor([[1, 2]]), generation_config=settings)
    except Exception as error:  # noqa: BLE001 - whatever it is, it would end a user's first call
        return " ".join(str(error).replace("GenerationConfig is invalid:", "").split())
    return None


def _judge(vocabulary: int) -> LlamaForCausalLM:
    """A model of no size with the tokens of the real one: what is judged is the settings."""
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, eos_token_id=None, bos_token_id=None, **shape))
