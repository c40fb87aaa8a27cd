"""An entry that names nothing is refused, with what is near, though another entry of its list names something."""

import pytest
import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM

from distft.config import schema
from distft.errors import ConfigError
from distft.model.adapter.attach import attach
from tests.model.folders import SMALL


@pytest.fixture
def model():
    with init_empty_weights():
        return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SMALL), dtype=torch.float32)


def lora(**keys) -> schema.Lora:
    return schema.Lora(method="lora", **keys)


CASES = {
    "targets": (lora(targets=["q_proj", "v_prj"]), "adapter.targets", "v_prj", "v_proj"),
    "in full": (lora(modules_to_save=["lm_hed"]), "adapter.modules_to_save", "lm_hed", "lm_head"),
    "excluded": (lora(options={"exclude_modules": ["down_pro"]}), "adapter.options.exclude_modules", "", "down_proj"),
    "ranks": (lora(options={"rank_pattern": {"up_pro": 4}}), "adapter.options.rank_pattern", "up_pro", "up_proj"),
    "alphas": (lora(options={"alpha_pattern": {"k_prj": 4}}), "adapter.options.alpha_pattern", "k_prj", "k_proj"),
    "tokens": (
        lora(options={"trainable_token_indices": {"embed_token": [1]}}),
        "adapter.options.trainable_token_indices",
        "embed_token",
        "embed_tokens",
    ),
    "layers": (
        lora(targets=["q_proj"], options={"layers_to_transform": [0], "layers_pattern": ["layer"]}),
        "adapter.options.layers_pattern",
        "layer",
        "layers",
    ),
    "bottleneck": (
        schema.Bottleneck(method="bottleneck", targets=["mlp", "self_atn"]),
        "adapter.targets",
        "",
        "self_attn",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_entry_that_names_nothing_is_refused_with_what_is_near(model, case):
    config, key, entry, near = CASES[case]
    with pytest.raises(ConfigError) as refused:
        attach(model, config, seed=0)
    (sentence,) = refused.value.problems
    assert sentence.startswith(f"{key}: ") and entry in sentence and sentence.endswith(f"did you mean {near}?")


@pytest.mark.parametrize("options", [{"layers_to_transform": [0, 2]}, {"trainable_token_indices": [5, 131]}])
def test_numbers_beyond_the_model_are_refused(model, options):
    with pytest.raises(ConfigError, match=r"got \[(2|131)\]"):
        attach(model, lora(targets=["q_proj"], options=options), seed=0)


def test_a_pattern_that_is_none_is_refused(model):
    with pytest.raises(ConfigError, match=r"adapter\.options\.rank_pattern: .*\(q_proj.*unterminated"):
        attach(model, lora(options={"rank_pattern": {"(q_proj": 2}}), seed=0)


def test_all_come_at_once(model):
    with pytest.raises(ConfigError) as refused:
        attach(model, lora(targets=["q_prj", "v_prj"], modules_to_save=["hed"]), seed=0)
    assert len(refused.value.problems) == 3


def test_what_matches_as_peft_matches_it_goes_through(model):
    patterns = {"rank_pattern": {r"layers\.0\.self_attn\.q_proj": 2, "^model.layers.1.mlp.up_proj": 3}}
    config = lora(targets=["self_attn.q_proj", "up_proj"], modules_to_save=["lm_head"], options=patterns)
    attached = attach(model, config, seed=0)
    ranks = {name: m.r["default"] for name, m in attached.named_modules() if hasattr(m, "lora_A")}
    assert sorted(ranks.values()) == [2, 3, 16, 16]
