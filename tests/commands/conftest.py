"""Trained runs, made when a test first asks for one, and commands on them, in one child process for all tests."""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import command_runs
from ranks import require_warm, warm_context


@pytest.fixture(scope="session")
def child() -> Iterator[Callable[..., Any]]:
    """`child(function, *args)` in a process of its own, always the same."""
    with ProcessPoolExecutor(1, mp_context=warm_context(), initializer=require_warm) as pool:
        yield lambda function, *args: pool.submit(function, *args).result(timeout=120)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(scope="session")
def base(place: Path, child: Callable[..., Any]) -> Path:
    child(command_runs.make_base, place / "base")
    return place / "base"


@pytest.fixture(scope="session")
def words(place: Path, base: Path) -> list[str]:
    """The command line that all runs share."""
    command_runs.make_data(place / "chats.jsonl")
    where = [f"model.source={base}", f"data.train={place / 'chats.jsonl'}", f"data.cache_dir={place / 'cache'}"]
    return [*command_runs.BASE, *command_runs.SHORT, *command_runs.LOUD, *where, f"run_root={place / 'runs'}"]


@pytest.fixture(scope="session")
def trained(words: list[str], child: Callable[..., Any]) -> Callable[[str], Path]:
    """The folder of the finished run of that name in command_runs.RUNS."""
    made: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in made:
            made[name] = child(command_runs.train, [*words, f"name={name}", *command_runs.RUNS[name]])
        return made[name]

    return run


@pytest.fixture(scope="session")
def command(child: Callable[..., Any]) -> Callable[..., command_runs.Done]:
    return lambda program, *argv, sabotage=None: child(command_runs.command, program, list(argv), sabotage)
