"""`all-linear` adapts what can be adapted, and says what it leaves out."""

import logging

import pytest
import torch
from accelerate import init_empty_weights
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from distft.config import schema
from distft.errors import ConfigError
from distft.model.adapter.attach import attach

SHAPE = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
LLAMA4 = {**SHAPE, "intermediate_size_mlp": 32, "interleave_moe_layer_step": 1}


def skeleton(family: str, **shape):
    with init_empty_weights():
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SHAPE, **shape}))


def adapted(family: str, targets, **more):
    lora = schema.Lora(method="lora", r=2, alpha=4, dropout=0.0, targets=targets, **more)
    return attach(skeleton(family, **(LLAMA4 if family == "llama4_text" else {})), lora, seed=0)


@pytest.mark.parametrize("family", ["phimoe", "llama4_text"])
def test_routers_that_give_more_than_a_tensor_are_left_out_and_told(family, caplog):
    with caplog.at_level(logging.WARNING):
        model = adapted(family, "all-linear")
    assert "leaves out 2 routers" in caplog.text
    assert isinstance(model, PeftModel)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert any("q_proj" in name for name in names) and not any("router" in name for name in names)
    real = model.to_empty(device="cpu")
    for p in real.parameters():
        torch.nn.init.normal_(p, std=0.02)
    for buffer in real.buffers():
        buffer.fill_(1)
    real(input_ids=torch.tensor([[5, 6, 7]]), use_cache=False).logits.sum().backward()


@pytest.mark.parametrize("family", ["phimoe", "llama4_text"])
def test_targets_that_name_a_router_are_refused(family):
    with pytest.raises(
        ConfigError, match=r"adapter.targets: must be layers that give one tensor, got .*router among 2"
    ):
        adapted(family, ["q_proj", "router"])


def test_experts_that_all_linear_leaves_out_are_told_with_the_way_to_adapt_them(caplog):
    with caplog.at_level(logging.WARNING):
        adapted("gpt_oss", "all-linear")
    assert "leaves out experts.down_proj,experts.gate_up_proj" in caplog.text
    assert "adapter.options.target_parameters=[experts.down_proj,experts.gate_up_proj]" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        model = adapted(
            "gpt_oss", "all-linear", options={"target_parameters": ["experts.down_proj", "experts.gate_up_proj"]}
        )
    assert "leaves out" not in caplog.text
    assert any("experts" in name for name, p in model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2"])
def test_where_all_is_adapted_nothing_is_told(family, caplog):
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4} if family == "gpt2" else {}
    with caplog.at_level(logging.WARNING):
        attach(skeleton(family, **shape), schema.Lora(method="lora", r=2, targets="all-linear", dropout=0.0), seed=0)
    assert "leaves out" not in caplog.text
