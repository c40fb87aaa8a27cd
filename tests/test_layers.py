"""Arrows between the parts go one way, read off the import statements themselves."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOOR = {"errors", "config.schema", "config.keys"}
"""What everything may import."""
ARROWS = {
    # part: the parts that it may import besides itself and the floor
    "errors": set(),
    "location": set(),
    "config": {"location"},
    "runtime": set(),
    "loss": set(),
    "optim": set(),
    "evaluation": {"data", "engine", "model", "runtime", "task"},
    "rehearsal": {"data", "engine", "runtime", "task"},
    "data": {"location", "runtime", "model"},
    "model": {"location", "runtime"},
    "task": {"data", "model", "loss", "location"},
    "engine": {"data", "model", "optim", "runtime", "task"},
    "status": {"runtime"},
    "owner": {"runtime"},
    "stage": {"engine", "model", "runtime", "task", "trained", "checkpoint"},
    "fewshot": {"data", "export_formats", "model", "runtime", "stage", "task", "tracking", "trained"},
    "tracking": {"status"},
    "schedule": {"engine", "model"},
    "checkpoint": {"engine", "model", "runtime", "schedule"},
    "forgetting": {"tracking"},
    "loop": {"data", "schedule", "engine", "checkpoint", "tracking", "runtime", "optim", "evaluation", "forgetting"},
}
ONE_PLACE = {
    "deepspeed": "distft/engine/zero.py",
    "wandb": "distft/tracking/wandb.py",
    "submitit": "launch/cluster.py",
    "hydra": "distft/config/compose.py",
    "lm_eval": "distft/fewshot/harness.py",
}


def files() -> list[Path]:
    return [file for folder in ("distft", "launch") for file in sorted((ROOT / folder).rglob("*.py"))]


def imported(file: Path, top_level_only: bool = False) -> Iterator[str]:
    """Every module that a file imports, anywhere in it; `from a import b` names both `a` and `a.b`."""
    tree = ast.parse(file.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(module: str) -> str:
    """`distft.engine.fsdp` is of `engine`; `distft.checkpoint_folder` of `checkpoint`."""
    name = module.split(".")[1]
    return "checkpoint" if name == "checkpoint_folder" else name


def test_arrows_go_one_way():
    wrong = []
    for file in files():
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        part = part_of(module)
        if module.startswith("launch") or part not in ARROWS or file.stem == "__main__":  # commands import everything
            continue
        for name in imported(file):
            if not name.startswith("distft.") or any(
                f"distft.{low}" in (name, name.rpartition(".")[0]) for low in FLOOR
            ):
                continue
            if name == "distft.config":  # from distft.config import schema
                continue
            if part_of(name) != part and part_of(name) not in ARROWS[part]:
                wrong.append(f"{module} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_the_launcher():
    assert not [
        str(file)
        for file in (ROOT / "distft").rglob("*.py")
        for name in imported(file)
        if name.split(".")[0] == "launch"
    ]


@pytest.mark.parametrize("package", ONE_PLACE)
def test_a_heavy_dependency_is_imported_in_one_place(package):
    places = {
        str(file.relative_to(ROOT)) for file in files() for name in imported(file) if name.split(".")[0] == package
    }
    assert places <= {ONE_PLACE[package]}


def test_the_errors_and_the_schema_import_neither_torch_nor_hydra():
    for file in ("errors.py", "location.py", "config/schema.py", "config/check.py", "config/compose.py", "cli.py"):
        tops = {name.split(".")[0] for name in imported(ROOT / "distft" / file, top_level_only=True)}
        assert not tops & {"torch", "transformers", "peft", "datasets", "hydra"}, file


@pytest.mark.parametrize("folder", ["distft", "launch", "benchmarks", "tests"])
def test_no_file_is_called_by_what_it_is_not(folder):
    names = {file.stem for file in (ROOT / folder).rglob("*.py")} | {
        f.name for f in (ROOT / folder).rglob("*") if f.is_dir()
    }
    assert not names & {"utils", "helpers", "manager", "common"}
