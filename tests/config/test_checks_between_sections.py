"""Combinations that no single key can refuse: each is told, and the fix it names is taken."""

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from distft.config.checks import check as checks
from distft.config.checks import engine as check_engine
from distft.config.schema import Data

# A course of its own, so that a better shipped recipe changes no test.
RUN = ("+exp=llama_lora", "steps=26", "optim.warmup=3")
COMMIT = "0123456789abcdef0123456789abcdef01234567"

CASES = [
    # (words, ranks, what is told, words that put it right)
    (["steps=null"], 1, "steps: must be set, or epochs, got neither", ["epochs=1"]),
    (["epochs=2"], 1, "steps: must be null beside epochs, got steps=26 and epochs=2", ["steps=null"]),
    (["engine=single"], 2, "engine: must be one for 2 ranks, got single", ["engine=auto"]),
    (
        ["engine=fsdp", "engine.shard_size=3"],
        4,
        "engine.shard_size: must divide the 4 ranks, got 3",
        ["engine.shard_size=2"],
    ),
    (["adapter=full", "model.quantization=nf4"], 1, "model.quantization: must be none", ["model.quantization=none"]),
    (["adapter=loftq"], 1, "adapter.init: loftq fits the error of quantisation", ["model.quantization=nf4"]),
    (["adapter=osf", "adapter.method=xlora"], 1, "adapter.method: must be a method that fits", ["adapter.method=vera"]),
    (["adapter=prompt"], 1, "data.packing: must be false with adapter.method=prompt_tuning", ["data.packing=false"]),
    (["adapter=prefix"], 1, "data.packing: must be false with adapter.method=prefix_tuning", ["data.packing=false"]),
    (
        ["adapter=prefix", "data.packing=false", "model.gradient_checkpointing=full"],
        1,
        "model.gradient_checkpointing: must be none with adapter.method=prefix_tuning",
        ["model.gradient_checkpointing=none"],
    ),
    (
        ["adapter=prefix", "data.packing=false", "model.attention=varlen"],
        1,
        "model.attention: must be sdpa or eager",
        ["model.attention=auto"],
    ),
    (
        ["adapter=p_tuning", "data.packing=false", "adapter.targets=[q_proj]"],
        1,
        "adapter.targets: must be null with p_tuning",
        ["adapter.targets=null"],
    ),
    (
        ["adapter=trainable_tokens"],
        1,
        "adapter.options.token_indices: must be set",
        ["adapter.options.token_indices=[1]"],
    ),
    (
        ["adapter=adalora", "adapter.options.init_r=4"],
        1,
        "adapter.options.target_r: must be > 0 and below init_r",
        ["adapter.options.init_r=16"],
    ),
    (
        ["adapter=adalora", "adapter.options.tinit=26"],
        1,
        "adapter.options.tinit: must leave steps",
        ["adapter.options.tinit=3"],
    ),
    (["adapter=vera", "adapter.targets=[]"], 1, "adapter.targets: must name at least", ["adapter.targets=all-linear"]),
    (["adapter=bottleneck", "adapter.targets=[]"], 1, "adapter.targets: must name at least", ["adapter.targets=[mlp]"]),
    (
        ["adapter=vera", "adapter.method=vblora", "adapter.options={}", "engine=zero3"],
        2,
        "engine: must be able to split what vblora trains, got zero3",
        ["engine=zero2"],
    ),
    (["adapter=osf"], 2, "engine: must be able to split what osf trains, got fsdp", ["engine=zero3"]),
    (
        ["adapter=layers", "adapter.unfreeze_every=2", "optim.weight_decay=0.1"],
        1,
        "optim.weight_decay: must be 0 with adapter.unfreeze_every",
        ["optim.weight_decay=0"],
    ),
    (["adapter.targets=[]"], 1, "adapter.targets: must name at least one module", ["adapter.targets=[q_proj]"]),
    (["optim=adafactor", "engine=fsdp"], 2, "optim: adafactor needs each weight whole", ["engine=single"]),
    (["optim=adamw_8bit", "engine=fsdp"], 2, "optim: adamw_8bit needs each weight whole", ["engine=single"]),
    (["optim=adamw_8bit"], 2, "optim: adamw_8bit needs each weight whole, which engine=auto", ["optim=adamw"]),
    (["optim=adafactor", "engine=zero3"], 2, "optim: adafactor needs each weight whole", ["optim=adamw"]),
    (
        ["optim.warmup=27"],
        1,
        "optim.warmup: must not be longer than the run, got 27 with steps=26",
        ["optim.warmup=26"],
    ),
    (["optim.warmup=1.5"], 1, "optim.warmup: must be whole steps, or a share below 1, got 1.5", ["optim.warmup=1"]),
    (["data.eval=a"], 1, "data.eval_fraction: must be 0 where data.eval is set, got 0.1", ["data.eval_fraction=0"]),
    (["evaluation.patience=2"], 1, "evaluation.patience: must have evaluations to count", ["evaluation.every=5"]),
    (
        ["data.eval_fraction=0", "evaluation.samples=0", "evaluation.every=5", "evaluation.patience=2"],
        1,
        "evaluation.patience: must have held-out rows",
        ["data.eval=x"],
    ),
    (
        ["data.eval_fraction=0", "evaluation.samples=0", "evaluation.every=5"],
        1,
        "evaluation.every: must have",
        ["data.eval=x"],
    ),
    (["data.eval_fraction=0"], 1, "evaluation.samples: must have held-out rows", ["evaluation.samples=0"]),
    (["data.train=[]"], 1, "data.train: must name at least one source, got []", ["data.train=[a]"]),
    (["data.train=[a,'']"], 1, "data.train: must name at least one source", ["data.train=[a,b]"]),
    (["model.source=[]"], 1, "model.source: must name a model, got []", ["model.source=[a/b]"]),
    (
        ["model.trust_remote_code=true"],
        1,
        "model.trust_remote_code: must have model.revision",
        [f"model.revision='{COMMIT}'"],
    ),
    (
        ["model.trust_remote_code=true", "model.revision=main"],
        1,
        "model.trust_remote_code: must have model.revision pinned to a commit (40 hex digits), got main",
        ["model.trust_remote_code=false"],
    ),
    (
        ["model.random_init={hidden_size: 8}"],
        1,
        "model.random_init: must name a model_type",
        ["model.random_init.model_type=llama"],
    ),
    (["run_root='a\x07b'"], 1, "run_root: must be a folder's path without control characters", ["run_root=runs"]),
    (["run_root=''"], 1, "run_root: must be a folder's path", ["run_root=runs"]),
]


@pytest.mark.parametrize(("words", "world_size", "expected", "fix"), CASES)
def test_a_combination_is_refused_and_its_fix_taken(
    words: list[str], world_size: int, expected: str, fix: list[str], problems: Callable[..., list[str]]
):
    told = problems(*RUN, *words, world_size=world_size)
    assert len([sentence for sentence in told if sentence.startswith(expected)]) == 1
    assert any(";" in sentence for sentence in told)
    left = problems(*RUN, *words, *fix, world_size=world_size)
    assert not [sentence for sentence in left if sentence.startswith(expected.split(":")[0] + ":")]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("micro", [1, 4, 5])
@pytest.mark.parametrize("rows", [1, 4, 6, 12, 30])
def test_a_batch_that_does_not_divide_names_values_that_do(rows: int, micro: int, world_size: int):
    data = Data(train="a", global_batch=rows, micro_batch=micro)
    told = checks.check({"data": data}, world_size=world_size, here=False)
    if rows % (micro * world_size) == 0:
        assert told == []
        return
    assert len(told) == 1
    got, _, fixes = told[0].partition("; use ")
    assert f"got {rows} with data.micro_batch={micro} and {world_size} rank" in got
    whole = [int(value) for value in re.findall(r"data\.global_batch=(\d+)", fixes)]
    assert whole and all(value % (micro * world_size) == 0 for value in whole)
    assert min(abs(value - rows) for value in whole) == min(abs(n * micro * world_size - rows) for n in range(1, 99))
    assert all(rows % (int(value) * world_size) == 0 for value in re.findall(r"data\.micro_batch=(\d+)", fixes))
    assert all(rows % (int(value) * micro) == 0 for value in re.findall(r"or (\d+) rank", fixes))


def test_without_a_world_size_nothing_is_said_of_ranks(problems: Callable[..., list[str]]):
    assert problems(*RUN, "engine=single", "data.global_batch=5", "data.micro_batch=2", world_size=None) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data.train=my.jsonl"], "data.train: path must exist, got 'my.jsonl'"),
        (["data.train=package://no_such/a"], "data.train: package 'no_such' of"),
        (["data.chat_template=t.jinja"], "data.chat_template: must be a Jinja file that exists, got t.jinja"),
        (["model.source=./nowhere"], "model.source: path must exist"),
        (
            ["resume=nver"],
            "resume: must be auto, never or the folder of a checkpoint, got nver; did you mean resume=never?",
        ),
        (["resume=c/step-1"], "resume: must be auto, never or the folder of a checkpoint, got c/step-1"),
    ],
)
def test_what_must_be_on_this_machine_is_looked_for(
    words: list[str], expected: str, problems: Callable[..., list[str]]
):
    told = problems(*RUN, "model.source=org/name", *words, here=True)
    assert [sentence[: len(expected)] for sentence in told] == [expected]
    assert problems(*RUN, *words, here=False) == []


def test_a_checkpoint_that_is_there_may_be_resumed(problems: Callable[..., list[str]], in_empty_folder: Path):
    folder = in_empty_folder / "runs" / "a" / "checkpoints" / "step-00000002"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    assert problems(*RUN, f"resume={folder}", here=True) == []
    assert f"did you mean resume={folder}?" in problems(*RUN, f"resume={folder}0", here=True)[0]


NEEDS_GPU = [
    (["engine=fsdp", "engine.offload=true"], "engine.offload: must have a GPU"),
    (["engine=zero2", "engine.offload_optimizer=true"], "engine.offload_optimizer: must have a GPU"),
    (["engine=zero3", "engine.offload_params=true"], "engine.offload_params: must have a GPU"),
]


@pytest.mark.parametrize(("words", "expected"), NEEDS_GPU)
def test_what_needs_a_gpu_is_refused_where_none_is_seen(
    words: list[str], expected: str, problems: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    told = problems(*RUN, *words, here=True)
    assert [sentence[: len(expected)] for sentence in told] == [expected]
    monkeypatch.setattr(check_engine, "gpu_is_likely", lambda: True)
    assert problems(*RUN, *words, here=True) == []


@pytest.mark.parametrize(
    ("word", "package", "key"),
    [
        ("engine=zero3", "deepspeed", "engine"),
        ("model.quantization=nf4", "bitsandbytes", "model.quantization"),
        ("tracking=tensorboard", "tensorboard", "tracking"),
    ],
)
def test_a_package_that_is_not_installed_is_named(
    word: str, package: str, key: str, problems: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest))
    told = problems(*RUN, word, here=True)
    assert len(told) == 1 and told[0].startswith(f"{key}: ") and f"pip install {package}" in told[0]
