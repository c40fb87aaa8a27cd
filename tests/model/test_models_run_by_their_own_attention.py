"""A model that is exported or replies is run by the attention that defines it, whatever it trained with."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from distft.config import schema
from distft.model import attention
from distft.model.architecture import CAUSAL
from distft.model.own_attention import own_implementation
from distft.session.whole import load_plain
from distft.task.generate import Prompts, greedy_replies

SHAPE = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT = {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1}
GPT |= {"eos_token_id": 2, "pad_token_id": 0}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
FAMILIES = {
    "llama": SHAPE,
    "gemma2": {**SHAPE, "head_dim": 8, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0, "sliding_window": 5},
    "gpt_oss": {**SHAPE, **EXPERTS, "head_dim": 8, "sliding_window": 5},
    "bloom": {"vocab_size": 60, "hidden_size": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 0},
    "gptj": {**GPT, "rotary_dim": 4},
    "codegen": {**GPT, "rotary_dim": 4},
    "gpt_neo": {**SHAPE, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "mpt": {"vocab_size": 60, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
    "falcon": {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "xglm": {"vocab_size": 60, "d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4, "pad_token_id": 0},
}
PROMPTS = [[5, 9, 11, 30, 7, 8, 41, 22], [8, 3]]


def model_of(family: str) -> torch.nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@torch.no_grad()
def likeliest(model: torch.nn.Module, prompt: list[int], count: int) -> list[int]:
    """Token by token, without a cache."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", FAMILIES)
def test_replies_are_the_likeliest_tokens_of_the_model_itself(family):
    attention.register()
    model = model_of(family)
    wanted = [likeliest(model, prompt, 4) for prompt in PROMPTS]
    model.config._attn_implementation = attention.NAME  # as in training
    prompts = Prompts(PROMPTS, 4, [], 0)
    assert greedy_replies(model, model, prompts, torch.float32) == wanted
    assert model.config._attn_implementation == attention.NAME


@pytest.mark.parametrize("family", FAMILIES)
def test_an_export_loads_any_family_with_the_logits_of_its_definition(family, tmp_path):
    model = model_of(family)
    model.save_pretrained(tmp_path)
    settings = schema.Model(source=str(tmp_path), dtype="float32")
    adapter = schema.Lora(method="lora", r=2, targets="all-linear") if family == "llama" else schema.Full(method="full")
    loaded = load_plain(settings, adapter, 0, CAUSAL).model.eval()
    ids = torch.tensor(PROMPTS[:1])
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits, rtol=1e-5, atol=1e-5)


def test_what_transformers_computes_in_the_model_s_own_file_only_is_run_there():
    own = {family: own_implementation(model_of(family)) for family in ("llama", "gemma2", "gpt_oss", "bloom", "falcon")}
    assert own == {"llama": "sdpa", "gemma2": "eager", "gpt_oss": "eager", "bloom": "eager", "falcon": "sdpa"}
