"""Models of many families come through our streamed loader and loss as transformers has them."""

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
DOCUMENTS = [7, 3, 9, 1]


@pytest.fixture(params=FAMILIES)
def saved(request, tmp_path):
    """A random model of the family in a folder, and as transformers loads it."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, **{**SMALL, **FAMILIES[request.param]})
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
