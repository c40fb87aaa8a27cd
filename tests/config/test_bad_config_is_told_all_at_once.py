"""Every problem of a command line stands in one answer: key, what must hold, value, fix."""

from collections.abc import Callable
from pathlib import Path

import pytest

from distft.config.reading.compose import load

EXP = "+exp=llama_lora"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data.max_lenght=5"], "data.max_lenght: no such key; did you mean data.max_length?"),
        (["step=5"], "step: no such key; did you mean steps?"),
        (["lr=1"], "lr: no such key; did you mean optim.lr?"),
        (["model.lr=1"], "model.lr: no such key; did you mean optim.lr?"),
        (["model.max_lenght=1"], "model.max_lenght: no such key; did you mean data.max_length?"),
        (
            ["engine=fsdpp"],
            "engine=fsdpp: no such option; did you mean fsdp? options: auto, fsdp, single, zero2, zero3",
        ),
        (["engine=null"], "engine=null: no such option; options: auto, fsdp, single, zero2, zero3"),
        (["adaptr=full"], "adaptr: no such key; did you mean adapter?"),
        (["engine.shard_size=2"], "engine.shard_size: belongs to engine=fsdp, not to engine=auto, got 2; remove it"),
        (["adapter=full", "adapter.r=8"], "adapter.r: belongs to adapter=lora, not to adapter=full, got 8; remove it"),
        (["optim=sgd", "optim.eps=1"], "optim.eps: belongs to optim=adamw or optim=adamw_8bit, not to optim=sgd"),
        (["steps=a"], "steps: must be a whole number > 0 or null, got a"),
        (["steps=0"], "steps: must be a whole number > 0 or null, got 0"),
        (
            ["checkpoint.keep=1"],
            "checkpoint.keep: must be a whole number >= 2, got 1; the default is checkpoint.keep=2",
        ),
        (["adapter.dropout=1"], "adapter.dropout: must be a number >= 0 and < 1, got 1"),
        (["optim.lr=fast"], "optim.lr: must be a number > 0, got fast"),
        (
            ["data.packing=perhaps"],
            "data.packing: must be true or false, got perhaps; the default is data.packing=true",
        ),
        (["model.dtype=bfloat17"], "model.dtype: must be one of bfloat16, float32, got bfloat17; did you mean"),
        (["adapter.method=lorra"], "adapter.method: must be one of lora, adalora, adamss, adaption_prompt, beft, boft"),
        (["adapter=vera", "adapter.options.rank=8"], "adapter.options.rank: no such option; options of vera: r, proj"),
        (["adapter=ia3", "adapter.options.init_ia3_weight=1"], "adapter.options.init_ia3_weight: no such option; did"),
        (
            ["adapter=vera", "adapter.options.r=x"],
            "adapter.options.r: must be a whole number, got x; write",
        ),
        (["adapter.options.r=8"], "adapter.options.r: is a key of adapter=lora, got 8; write adapter.r=8"),
        (
            ["adapter.options.lora_alpha=8"],
            "adapter.options.lora_alpha: is a key of adapter=lora, got 8; write",
        ),
        (["adapter=oft", "adapter.options.target_modules=[a]"], "adapter.options.target_modules: is a key of every"),
        (["adapter=adalora", "adapter.options.total_step=9"], "adapter.options.total_step: is the run's own number"),
        (["name=a/b"], "name: must be at most 128 letters, digits and"),
        (["name=-a"], "name: must be at most 128 letters, digits and"),
        (["model.source={a: 1}"], "model.source: must be text or a list, each text, got {a: 1}"),
        (["optim.betas=[1,2]"], "optim.betas: must be a list of 2, each a number >= 0 and < 1, got [1,2]"),
        (["data.train=[{path: a, wieght: 2}]"], "data.train.0.wieght: no such key, got 2; did you mean weight?"),
        (["data.train=[{path: a, weight: -2}]"], "data.train.0.weight: must be a number > 0, got -2"),
        (["data.train=[{weight: 2}]"], "data.train.0.path: must be set, to text"),
        (["seed.x=1"], "seed: must be a whole number >= 0, got {x: 1}"),
        (["~optim.lr"], "optim.lr: must be set, to a number > 0"),
        (["~cluster"], "cluster: must be set; choose an option"),
        (["~optim.lrr"], "~optim.lrr: must name a key that is there"),
        (["data=jsonl"], "data.train: must be set, to text or a list"),
        (["data.global_batch=2,4"], "data.global_batch: must be one value, got 2,4; a list is [a,b], a sweep is"),
        (["data.train=a(b"], "data.train=a(b: must read key=value; quote"),
        (["llama_qlora"], "llama_qlora: must read key=value; did you mean +exp=llama_qlora?"),
        (["+exp=llama_qlora"], "exp: must be given once"),
        ([""], "'': must read key=value"),
        (["=3"], "=3: must read key=value"),
        (
            ["evaluation.patience=None"],
            "evaluation.patience: must be a whole number > 0 or null, got None; did you mean",
        ),
        (["hydra.run.dir=x"], "hydra.run.dir: Hydra's own keys have no effect here"),
        (["--nope"], "--nope: no such option; options: --help"),
        (["--multirun"], "--multirun: belongs to python -m launch"),
        (["--config-dir", "nowhere"], "--config-dir: must be a folder that exists"),
        (["--config-dir"], "--config-dir: must be a folder that exists, got nothing"),
        (["--cfg", "hydra"], "--cfg: must be job, got hydra"),
        (["model.random_init=${nowhere}"], "model.random_init: cannot be resolved"),
    ],
)
def test_a_fault_is_told_in_one_sentence_with_its_fix(
    words: list[str], expected: str, problems: Callable[..., list[str]]
):
    told = problems(EXP, *words)
    assert [sentence[: len(expected)] for sentence in told] == [expected]
    assert "pydantic" not in told[0] and "\n" not in told[0]


def test_five_faults_are_five_sentences(problems: Callable[..., list[str]]):
    told = problems(
        EXP,
        "engine=fsdpp",
        "data.max_lenght=5",
        "optim.lr=-1",
        "model.dtype=float17",
        "data.global_batch=5",
        world_size=2,
    )
    assert [sentence.split(":")[0] for sentence in told] == [
        "engine=fsdpp",
        "model.dtype",
        "data.max_lenght",
        "optim.lr",
        "data.global_batch",
    ]


def test_a_broken_section_hides_no_fault_between_two_others(problems: Callable[..., list[str]]):
    told = problems(EXP, "model.dtype=x", "adapter.q=1", "data.eval=x", "evaluation.patience=2", "optim.warmup=99")
    assert {sentence.split(":")[0] for sentence in told} == {
        "model.dtype",
        "adapter.q",
        "data.eval_fraction",
        "evaluation.patience",
        "optim.warmup",
    }


def test_a_misspelt_experiment_names_the_nearest_and_nothing_that_follows_from_it(problems: Callable[..., list[str]]):
    (told,) = problems("+exp=lama_lora")
    assert told.startswith("exp=lama_lora: no such option; did you mean llama_lora? options: ")
    assert "llama_full, llama_lora, llama_qlora" in told
    assert len(problems("+exp=zzz", "engine=fsdpp")) == 2


def test_no_experiment_says_how_to_choose_one(problems: Callable[..., list[str]]):
    told = problems()
    assert len(told) == 2 and "+exp=llama_lora" in told[0] and told[1].startswith("steps: must be set, or epochs")


def test_what_an_adapter_left_behind_in_an_experiment_is_reported(
    problems: Callable[..., list[str]], in_empty_folder: Path
):
    own = in_empty_folder / "own" / "exp"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# @package _global_\ndefaults: [llama_lora]\nname: mine\nadapter: {r: 8}\n")
    words = ["--config-dir", "own", "+exp=mine"]
    assert problems(*words) == []
    assert [sentence.split(":")[0] for sentence in problems(*words, "adapter=full")] == ["adapter.r"]
    assert problems(*words, "adapter=full", "~adapter.r") == []


@pytest.mark.parametrize(
    "words",
    [
        ["model.hf_token=s3cr3t"],
        ["tracking=wandb", "++tracking.api_key=s3cr3t"],
        ["password=s3cr3t"],
        ["wandb_api_key=s3cr3t(("],
        ["model=tiny", "model.random_init={a: {HF_TOKEN: s3cr3t}}"],
        ["data.train=[{path: a, secret: s3cr3t}]"],
    ],
)
def test_a_secret_is_refused_and_not_repeated(words: list[str], problems: Callable[..., list[str]]):
    told = problems(EXP, *words)
    assert len(told) == 1 and "take it from the environment" in told[0] and "s3cr3t" not in told[0]


def test_token_ids_and_token_counts_are_no_secrets(problems: Callable[..., list[str]]):
    assert problems(EXP, "model=tiny", "model.random_init.eos_token_id=2", "evaluation.max_new_tokens=5") == []


@pytest.mark.parametrize("key", ["model._target_", "_partial_", "data.train._args_"])
def test_a_config_names_no_python_object(key: str, problems: Callable[..., list[str]]):
    assert f"{key}: must not be there, a config names no Python objects; remove it" in problems(EXP, f"{key}=os.system")


def test_a_target_in_a_users_file_is_refused(problems: Callable[..., list[str]], in_empty_folder: Path):
    (in_empty_folder / "model").mkdir()
    (in_empty_folder / "model" / "evil.yaml").write_text(
        "defaults: [hub]\nsource: a/b\nrandom_init: {_target_: os.system}\n"
    )
    told = problems(EXP, "model=evil", f"--config-dir={in_empty_folder}")
    assert "model.random_init._target_: must not be there, a config names no Python objects; remove it" in told


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1", "cannot be composed"),
        ("# @package _global_\ndefaults: [nowhere]\n", "Could not load 'exp/nowhere'.; correct that file"),
        ("# @package _global_\ndefaults: [{override /engine: nope}]\n", "Available options in 'engine': auto fsdp"),
        ("name: mine\n", "# @package _global_"),
        ("# @package _global_\nlr: 1\n", "optim.lr"),
    ],
)
def test_a_users_broken_experiment_is_told_without_a_traceback(
    text: str, expected: str, problems: Callable[..., list[str]], in_empty_folder: Path
):
    (in_empty_folder / "exp").mkdir()
    (in_empty_folder / "exp" / "mine.yaml").write_text(text)
    assert any(expected in sentence for sentence in problems("+exp=mine", "--config-dir", "."))


def test_a_users_folder_adds_options_and_experiments(in_empty_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    own = tmp_path_factory.mktemp("it's mine")
    for group, text in {
        "exp": "# @package _global_\ndefaults: [llama_lora, override /data: mine]\nname: mine\n"
    }.items():
        (own / group).mkdir()
        (own / group / "mine.yaml").write_text(text)
    (own / "data").mkdir()
    (own / "data" / "mine.yaml").write_text("defaults: [jsonl, _self_]\ntrain: mine.jsonl\n")
    config = load(["+exp=mine", "--config-dir", str(own)], program="distft.train", world_size=1, here=False)
    assert (config.name, config.data.train, config.data.max_length) == ("mine", "mine.jsonl", 2048)
