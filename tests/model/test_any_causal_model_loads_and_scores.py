"""Models of many families come through our streamed loader and loss as transformers has them."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from distft.config import schema
from distft.data.document import IGNORED
from distft.data.loader import Batch
from distft.errors import ConfigError
from distft.model.adapter.saved import trainable
from distft.model.load import load
from distft.task.causal_lm import CausalLM

SMALL = {
    "vocab_size": 131,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES = {
    "llama": {"tie_word_embeddings": False},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 5},
    "gemma2": {"sliding_window": 5, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0},
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 0.5},
    "gpt_neox": {},
    "mixtral": {"sliding_window": None, **MOE},
    "qwen3_moe": {"decoder_sparse_step": 1, **MOE},
}
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "num_key_value_heads": 4}
MLA |= {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
LINEAR |= {"linear_conv_kernel_dim": 4, "layer_types": ["linear_attention", "full_attention"]}
MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_expand": 2}
MAMBA2 |= {"mamba_chunk_size": 16, "mamba_d_conv": 4, "mamba_d_ssm": 64}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4, "n_inner": 64}
KINDS = {
    "gemma2": {**FAMILIES["gemma2"], "attn_logit_softcapping": 2.0},
    "gpt_oss": {**MOE, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    "deepseek_v3": {**MLA, "v_head_dim": 4, "first_k_dense_replace": 1, "n_shared_experts": 1, "head_dim": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_ff_dim": 64, "conv_L_cache": 3},
    "qwen3_5_text": LINEAR,
    "falcon_h1": {**MAMBA2, "lm_head_multiplier": 0.25, "embedding_multiplier": 2.0},
    "rwkv": {"attention_hidden_size": 32},
    "codegen": GPT,
    "gptj": GPT,
    "bloom": {"n_layer": 2, "n_head": 4},
    "doge": {},
    "stablelm": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "hyperclovax": {"logits_scaling": 0.25},
    "modernbert-decoder": {"local_attention": 6, "global_attn_every_n_layers": 2},
}
"""They carry a state over tokens, compute attention themselves or give it more, or have a head of their own."""
DOCUMENTS = [7, 3, 9, 1]


@pytest.fixture(params=FAMILIES)
def saved(request, tmp_path):
    """A random model of the family in a folder, and as transformers loads it."""
    return random_model(request.param, FAMILIES[request.param], tmp_path)


def random_model(family, settings, tmp_path):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SMALL, **settings})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path)
    return tmp_path, AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()


def batch() -> Batch:
    """One packed row: documents of DOCUMENTS tokens, every second token supervised."""
    length = sum(DOCUMENTS)
    ids = torch.randint(3, 131, (1, length), generator=torch.Generator().manual_seed(1))
    ends = torch.tensor([0, *torch.tensor(DOCUMENTS).cumsum(0).tolist()], dtype=torch.int32)
    positions = torch.cat([torch.arange(n) for n in DOCUMENTS])[None]
    targets = ids.roll(-1, 1).where(torch.arange(length) % 2 == 0, IGNORED)
    targets[0, ends[1:].long() - 1] = IGNORED
    return Batch(ids, positions, targets, ends, max(DOCUMENTS), length, int((targets != IGNORED).sum()), seed=0)


def test_loss_on_packed_documents_is_that_of_transformers_on_each_alone(saved):
    folder, reference = saved
    source = schema.Model(source=str(folder), dtype="float32", compute_dtype="float32")
    device = torch.device("cpu")
    loaded = load(source, schema.Lora(method="lora"), seed=0, device=device, shard=lambda block: None)
    task = CausalLM(loaded.model, torch.float32).eval()
    packed = batch()
    expected = torch.zeros(())
    for start, stop in zip(packed.document_ends[:-1].tolist(), packed.document_ends[1:].tolist(), strict=True):
        logits = reference(packed.input_ids[:, start:stop]).logits[0]
        expected += F.cross_entropy(logits, packed.targets[0, start:stop], ignore_index=IGNORED, reduction="sum")
    torch.testing.assert_close(task(packed)[0], expected, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("attention", ["auto", "eager"])
def test_families_of_every_kind_are_trained_on_the_loss_of_transformers(family, attention, tmp_path):
    folder, _ = random_model(family, KINDS[family], tmp_path)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    source = schema.Model(source=str(folder), dtype="float32", compute_dtype="float32", attention=attention)
    loaded = load(source, schema.Full(method="full"), seed=0, device=torch.device("cpu"), shard=lambda block: None)
    task, packed = CausalLM(loaded.model, torch.float32).eval(), batch()
    expected = 0.0
    for start, stop in zip(packed.document_ends[:-1].tolist(), packed.document_ends[1:].tolist(), strict=True):
        logits = reference(packed.input_ids[:, start:stop]).logits[0]
        targets = packed.targets[0, start:stop]
        expected += F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum").item()
    assert task(packed)[0].item() == pytest.approx(expected, rel=1e-6)
    other = packed.input_ids.clone()
    other[0, 6] = (other[0, 6] + 7) % 120 + 5  # the last token of the first document
    moved = (task.encode(packed)[0] - task.encode(replace(packed, input_ids=other))[0]).abs().amax(-1)
    assert moved[6] > 1e-3
    assert max(moved[:6].max(), moved[7:].max()) < 1e-5


def test_every_linear_layer_of_the_blocks_is_stored_in_four_bits(saved):
    folder, reference = saved
    if "Moe" in type(reference).__name__ or "Mixtral" in type(reference).__name__:
        pytest.skip("experts are no linear layers: see the next test")
    source = schema.Model(source=str(folder), dtype="float32", quantization="nf4")
    device = torch.device("cpu")
    loaded = load(source, schema.Lora(method="lora"), seed=0, device=device, shard=lambda block: None)
    task = CausalLM(loaded.model, loaded.compute_dtype)
    loss = task(batch())
    loss.backward()
    assert torch.isfinite(loss)
    assert any(p.grad is not None and p.grad.any() for p in trainable(loaded.model).values())
    plain = [n for n, m in task.base.base_model.named_modules() if type(m) is torch.nn.Linear and "lora" not in n]
    assert not [name for name in plain if "layers" in name]


@pytest.mark.parametrize("saved", ["mixtral"], indirect=True)
def test_fused_experts_are_refused_in_four_bits_and_not_left_in_silence(saved):
    folder, _ = saved
    source = schema.Model(source=str(folder), dtype="float32", quantization="nf4")
    with pytest.raises(ConfigError, match=r"model\.quantization: nf4 needs .* in linear layers"):
        load(source, schema.Lora(method="lora"), seed=0, device=torch.device("cpu"), shard=lambda block: None)
