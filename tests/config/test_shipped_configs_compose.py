"""Every file in conf/ is part of some config that is valid, and hides no default."""

from collections.abc import Callable

import pytest
import yaml

from distft.config.keys import known
from distft.config.reading.folders import conf_dir, group_options
from distft.config.reading.resolved import to_yaml
from distft.config.schema import Config

GROUPS = group_options([conf_dir()])
OPTIONS = [(group, option) for group in GROUPS if group != "exp" for option in GROUPS[group]]
BESIDE = {
    ("model", "hub"): ["model.source=org/name"],
    ("data", "jsonl"): ["data.train=my.jsonl"],
    ("adapter", "loftq"): ["model.quantization=nf4"],
    ("adapter", "prefix"): ["data.packing=false"],
    ("adapter", "prompt"): ["data.packing=false"],
    ("adapter", "p_tuning"): ["data.packing=false"],
    ("adapter", "trainable_tokens"): ["adapter.options.token_indices=[0,1]"],
    ("cluster", "slurm"): ["cluster.time_min=60"],
    **{("task", name): ["evaluation.samples=0"] for name in GROUPS["task"]},
}


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("name", GROUPS["exp"])
def test_every_experiment_is_valid_on_one_rank_and_on_two(name: str, world_size: int, compose: Callable[..., Config]):
    assert compose(f"+exp={name}", world_size=world_size).name == name


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_is_valid_and_shows_every_key(group: str, option: str, compose: Callable[..., Config]):
    words = ["+exp=llama_lora", f"{group}={option}", *BESIDE.get((group, option), [])]
    alone = option in ("single", "adafactor", "adamw_8bit", "osf")
    section = getattr(compose(*words, world_size=1 if alone else 2), group)
    assert section.model_fields_set == set(type(section).model_fields)


def test_every_group_of_the_schema_has_options():
    assert {entry.path.split(".")[0] for entry in known(Config.model_fields) if "." in entry.path} == set(GROUPS) - {
        "exp"
    }


@pytest.mark.parametrize("name", GROUPS["exp"])
def test_an_experiment_says_what_it_is_and_how_to_run_it(name: str):
    lines = GROUPS["exp"][name].read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith("# ") and f"python -m distft.train +exp={name}" in "\n".join(lines)


def test_an_experiment_takes_another_model_and_data(compose: Callable[..., Config]):
    config = compose("+exp=llama_qlora", "model=llama3_8b", "data.train=my.jsonl")
    assert config.model.source == "meta-llama/Llama-3.1-8B-Instruct"
    assert config.model.quantization == "nf4"
    assert config.data.train == "my.jsonl"
    assert config.data.eval_fraction > 0


def test_the_command_line_beats_the_experiment_for_groups_and_values(compose: Callable[..., Config]):
    config = compose("optim.lr=0.125", "engine=zero2", "+exp=llama_lora", "adapter=dora", "++steps=7")
    assert (config.optim.lr, config.engine.name, config.steps) == (0.125, "zero2", 7)
    assert config.adapter.method == "lora" and config.adapter.dora


@pytest.mark.parametrize("word", ["exp=llama_lora", "+exp=llama_lora", "++exp=llama_lora"])
def test_an_experiment_is_named_with_or_without_a_plus(word: str, compose: Callable[..., Config]):
    assert compose(word).name == "llama_lora"


def test_digits_stay_text_where_text_is_meant(compose: Callable[..., Config]):
    config = compose("+exp=llama_lora", "name=007", "model.revision=1e5", "seed=7")
    assert (config.name, config.model.revision, config.seed) == ("007", "1e5", 7)


def test_the_yaml_of_a_config_is_the_config(compose: Callable[..., Config]):
    config = compose("+exp=llama_qlora", "engine=fsdp", "data.train=[a.jsonl,{path: b.jsonl, weight: 0.5}]")
    assert Config.model_validate(yaml.safe_load(to_yaml(config))) == config
