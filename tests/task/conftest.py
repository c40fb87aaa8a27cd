"""A tokenizer of words, and a reader of rows, for the tests of tasks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small
from transformers import PreTrainedTokenizerFast

from distft.config import schema
from distft.data.prepare import Prepared, prepare
from distft.errors import ConfigError
from distft.model.tokenizer import load_tokenizer
from distft.task import build as tasks
from tests.commands.conftest import child, command
from tests.resume.tiny_run import commands

__all__ = ["child", "command", "commands"]


@pytest.fixture(scope="session")
def words_folder(tmp_path_factory) -> Path:
    return small.write_tokenizer(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="session")
def words(words_folder: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(schema.Model(source=str(words_folder)))


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory) -> Path:
    """A random Llama with large logits."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**small.LLAMA)).save_pretrained(folder)
    return folder


@pytest.fixture
def read(tmp_path: Path, words: PreTrainedTokenizerFast) -> Callable[..., Prepared]:
    """Rows as a task prepares them: `read(section, train rows, held-out rows, data options, facts)`."""

    def run(
        task: schema.AnyTask, train: list[Any], held_out: list[Any] = (), facts: dict | None = None, **options: Any
    ) -> Prepared:
        files = {}
        for name, rows in (("train", train), ("eval", held_out)):
            if rows:
                files[name] = str(tmp_path / f"{name}.jsonl")
                Path(files[name]).write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = schema.Data(**files, cache_dir=str(tmp_path / "cache"), **options)
        return prepare(data, tasks.build(task).reader(words, data, facts))

    return run


@pytest.fixture
def problems(read: Callable[..., Prepared]) -> Callable[..., list[str]]:
    """What is wrong with rows."""

    def run(*arguments: Any, **options: Any) -> list[str]:
        with pytest.raises(ConfigError) as raised:
            read(*arguments, **options)
        return raised.value.problems

    return run
