"""On resume, what the run is must stay; where and how fast it runs may change."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import yaml

from distft.config.keys import known
from distft.config.reading.compose import load
from distft.config.reading.resolved import to_yaml
from distft.config.resume import RULES, check_resume, rule_of
from distft.config.schema import Config

# A course of its own, so that a better shipped recipe changes no test.
RUN = ("+exp=llama_lora", "steps=26", "optim.lr=0.0005")


@cache
def saved() -> dict[str, Any]:
    """What `config.yaml` of the run that began holds."""
    return yaml.safe_load(to_yaml(load(RUN, program="distft.train", here=False)))


def changes(compose: Callable[..., Config], words: list[str]) -> tuple[list[str], list[str]]:
    return check_resume(saved(), compose(*RUN, *words, world_size=None))


@pytest.mark.parametrize(
    "words",
    [
        ["engine=fsdp", "engine.shard_size=2"],
        ["engine=zero3"],
        ["data.micro_batch=2"],
        ["data.num_workers=3", "data.cache_dir=/tmp/x"],
        ["checkpoint.every=7", "checkpoint.keep=5"],
        ["evaluation.every=3", "evaluation.patience=2"],
        ["tracking=wandb", "tracking.project=x"],
        ["model.gradient_checkpointing=full", "model.attention=sdpa"],
        ["name=other", "run_root=elsewhere", "resume=never"],
        [],
    ],
)
def test_what_may_change_is_taken_in_silence(words: list[str], compose: Callable[..., Config]):
    assert changes(compose, words) == ([], [])


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["model.revision=v2"], "model.revision"),
        (["model.dtype=float32"], "model.dtype"),
        (["model.quantization=nf4"], "model.quantization"),
        (["model.random_init={model_type: llama}"], "model.random_init"),
        (["adapter=full"], "adapter.method"),
        (["adapter.r=8"], "adapter.r"),
        (["adapter.alpha=8"], "adapter.alpha"),
        (["adapter.targets=[q_proj]"], "adapter.targets"),
        (["adapter=dora"], "adapter.dora"),
        (["adapter=pissa"], "adapter.init"),
        (["data.train=[{path: other, weight: 2}]"], "data.train"),
        (["data.train=[other, another]"], "data.train"),
        (["data.max_length=256"], "data.max_length"),
        (["data.packing=false"], "data.packing"),
        (["data.eval_fraction=0.2"], "data.eval_fraction"),
        (["data.global_batch=8"], "data.global_batch"),
        (["seed=1"], "seed"),
        (["optim=sgd"], "optim.name"),
    ],
)
def test_what_a_run_is_may_not_change(words: list[str], key: str, compose: Callable[..., Config]):
    problems, _ = changes(compose, words)
    assert [sentence.split(":")[0] for sentence in problems] == [key]
    assert (
        "must stay what the run began with" in problems[0]
        and "; set " in problems[0]
        and "another name=" in problems[0]
    )


@pytest.mark.parametrize("word", ["model.source=org/other", "data.train=other", "data.train=[{path: other}]"])
def test_base_and_data_may_lie_elsewhere_for_their_content_is_compared(word: str, compose: Callable[..., Config]):
    assert changes(compose, [word]) == ([], [])


def test_a_refusal_shows_both_values_and_the_way_back(compose: Callable[..., Config]):
    (sentence,), _ = changes(compose, ["optim=sgd"])
    assert "began with, adamw, got sgd" in sentence and "; set optim=adamw, or give another name=" in sentence


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["optim.lr=0.001"], "optim.lr: changed from 0.0005 to 0.001"),
        (["optim.schedule=linear"], "optim.schedule: changed from cosine to linear"),
        (["adapter.dropout=0.1"], "adapter.dropout: changed from 0 to 0.1"),
        (["steps=52"], "steps: changed from 26 to 52; the cosine schedule now ends at the new last step"),
    ],
)
def test_a_changed_course_is_taken_with_a_warning(words: list[str], told: str, compose: Callable[..., Config]):
    problems, warnings = changes(compose, words)
    assert problems == [] and [warning[: len(told)] for warning in warnings] == [told]


def test_more_steps_at_a_constant_rate_change_no_course(compose: Callable[..., Config]):
    constant = compose(*RUN, "optim.schedule=constant").model_dump(mode="json")
    assert check_resume(constant, compose(*RUN, "optim.schedule=constant", "steps=52")) == ([], [])


def test_all_refusals_come_at_once(compose: Callable[..., Config]):
    problems, _ = changes(compose, ["seed=1", "adapter.r=8", "data.max_length=99"])
    assert [sentence.split(":")[0] for sentence in problems] == ["seed", "adapter.r", "data.max_length"]


def test_every_key_has_a_rule_and_every_rule_a_key():
    keys = {entry.path for entry in known(Config.model_fields)}
    assert all("nothing is known" not in rule_of(key)[1] for key in keys)
    assert all(key in keys or any(each.startswith(f"{key}.") for each in keys) for key in RULES)
