"""`run=FOLDER` brings a run's own config back, with overrides and a command's own keys."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from distft.config.reading.compose import load_run, load_with
from distft.config.reading.resolved import to_yaml
from distft.config.schema import Config, Section
from distft.errors import ConfigError


class Export(Section):
    to: Literal["merged", "adapter"]
    path: str | None = None


class Own(Section):
    export: Export


class Rows(Section):
    rows: int = 3
    """How many rows to show."""


class Empty(Section):
    pass


@pytest.fixture
def run(compose: Callable[..., Config], in_empty_folder: Path) -> Path:
    folder = in_empty_folder / "runs" / "mine"
    folder.mkdir(parents=True)
    config = compose(
        "+exp=llama_qlora", "name=mine", "engine=fsdp", "data.train=[{path: a.jsonl, weight: 2}]", "optim.lr=3e-5"
    )
    (folder / "config.yaml").write_text(to_yaml(config))
    return folder


def test_a_run_comes_back_as_it_was_saved(run: Path, compose: Callable[..., Config]):
    folder, config, _ = load_run([f"run={run}"], Empty, program="distft.evaluate")
    assert folder == run
    assert to_yaml(config) == (run / "config.yaml").read_text()


def test_a_group_override_replaces_the_section_and_a_value_override_one_key(run: Path):
    words = ["run=runs/mine", "data=jsonl", "data.train=b.jsonl", "engine=single", "evaluation.samples=9"]
    _, config, _ = load_run(words, Empty, program="distft.evaluate")
    assert (config.data.train, config.data.max_length) == ("b.jsonl", 2048)
    assert (config.engine.name, config.evaluation.samples) == ("single", 9)
    assert (config.model.quantization, config.optim.lr) == ("nf4", 3e-5)


def test_a_commands_own_keys_come_beside_the_config(run: Path):
    _, config, own = load_run(["run=runs/mine", "export.to=merged", "export.path=out"], Own, program="distft.export")
    assert own == Own(export=Export(to="merged", path="out"))
    assert config.name == "mine"


def test_a_command_on_an_experiment_has_own_keys_too(in_empty_folder: Path):
    config, own = load_with(["+exp=llama_lora", "rows=5"], Rows, program="distft.data", here=False)
    assert (config.name, own.rows) == ("llama_lora", 5)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["run: must be set, to a run's folder; give run=runs/NAME"]),
        (["run=runs/mnie"], ["run: must be a folder that exists, got runs/mnie; did you mean run=runs/mine?"]),
        (["run=runs/other"], ["run: must be a folder that exists, got runs/other; runs there: mine"]),
        (["run=runs"], ["run: must be a folder that is a run's (it has a config.yaml), got runs; runs there: none"]),
        (["run=runs/mine"], ["export: must be set"]),
        (
            ["run=runs/mine", "export.to=merge"],
            ["export.to: must be one of merged, adapter, got merge; did you mean export.to=merged?"],
        ),
        (["run=runs/mine", "export.two=x", "export.to=merged"], ["export.two: no such key; did you mean export.to?"]),
        (["run=runs/mine", "+exp=llama_lora", "export.to=adapter"], ["exp: must not be given with run="]),
        (
            ["run=runs/mine", "data=jsonnl", "optim.lrr=1", "export.to=adapter"],
            ["data=jsonnl: no such option; did you mean jsonl?", "data.train: must be set", "optim.lrr: no such key"],
        ),
    ],
)
def test_what_is_wrong_is_told_with_the_nearest_run(words: list[str], expected: list[str], run: Path):
    with pytest.raises(ConfigError) as caught:
        load_run(words, Own, program="distft.export")
    told = caught.value.problems
    assert [sentence[: len(start)] for sentence, start in zip(told, expected, strict=True)] == expected


@pytest.mark.parametrize("text", ["", "a: [", "- 1\n", "just text"])
def test_a_run_with_a_broken_config_is_named(text: str, run: Path):
    (run / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"run: |name: must be set"):
        load_run(["run=runs/mine"], Empty, program="distft.evaluate")
