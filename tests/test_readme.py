"""The README tells the truth: its commands exist and compose, its lists are those of conf/."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from distft.config.reading.compose import load

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"^(?:    )?((?:python|torchrun|make)\s[^#\n]*)", README, re.MULTILINE)))


def options(group: str) -> set[str]:
    return {file.stem for file in (ROOT / "conf" / group).glob("*.yaml")}


def test_it_fits_two_screens_and_names_commands():
    assert len(README.splitlines()) < 200
    assert len(COMMANDS) > 8


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_make_targets_exist(command):
    makefile = (ROOT / "Makefile").read_text()
    for target in command.split()[1:]:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.startswith("make")])
def test_commands_name_modules_and_compose(command, tmp_path, monkeypatch):
    words = shlex.split(command)
    module = words[words.index("-m") + 1]
    assert importlib.util.find_spec(module), f"{module} does not exist"
    if module not in ("distft.train", "distft.data"):
        return
    arguments = words[words.index("-m") + 2 :]
    ranks = int(words[words.index("--nproc-per-node") + 1]) if "--nproc-per-node" in words else 1
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.jsonl").write_text("{}\n")
    load(arguments, program=module, world_size=ranks, here=False)


@pytest.mark.parametrize("group", ["adapter", "engine", "optim", "regularisation", "tracking"])
def test_option_lists_are_those_of_conf(group):
    row = next(line for line in README.splitlines() if line.startswith(f"| `{group}` |"))
    told = set(re.findall(r"`([a-z0-9_]+)`", row)) & (options(group) | {"x"})
    assert told == options(group)


def test_every_task_is_named():
    assert set(re.findall(r"^\| `([a-z0-9_]+)` \|", README, re.MULTILINE)) >= options("task")


def test_every_shipped_model_is_named():
    for model in options("model") - {"hub"}:
        assert f"`{model}`" in README
