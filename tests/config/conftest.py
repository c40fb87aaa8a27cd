"""A command line in, problems out."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path

import pytest
from omegaconf import DictConfig

from distft.config.reading import compose as composing
from distft.config.reading.compose import CommandLine, load
from distft.config.schema import Config
from distft.errors import ConfigError


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Configs must be found from any folder: the tests run far from the clone."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def composed_once() -> Callable[[list[str], CommandLine], DictConfig]:
    """Hydra takes 0.2 s to compose, and the same choices from the shipped groups compose to the same."""
    compose, seen = composing._compose, {}

    def remember(choices: list[str], line: CommandLine) -> DictConfig:
        if line.config_dirs:
            return compose(choices, line)
        key = tuple(choices)
        if key not in seen:
            seen[key] = compose(choices, line)
        return deepcopy(seen[key])

    return remember


@pytest.fixture
def compose(
    in_empty_folder: Path, composed_once: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Config]:
    monkeypatch.setattr(composing, "_compose", composed_once)

    def run(*words: str, world_size: int | None = 1, here: bool = False) -> Config:
        return load(words, program="distft.train", world_size=world_size, here=here)

    return run


@pytest.fixture
def problems(compose: Callable[..., Config]) -> Callable[..., Sequence[str]]:
    """What `load` has against a command line; [] where it takes it."""

    def run(*words: str, world_size: int | None = 1, here: bool = False) -> Sequence[str]:
        try:
            compose(*words, world_size=world_size, here=here)
        except ConfigError as error:
            return error.problems
        return []

    return run
