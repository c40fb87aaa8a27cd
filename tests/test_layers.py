"""Arrows between the parts go one way, read off the import statements themselves."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ARROWS = {
    # part: the parts that it may import, besides the errors. A part stands below all that it is imported by.
    "runtime": set(),
    "config.keys": set(),
    "config.sections": {"config.keys", "runtime"},
    "config": {"config.keys", "config.sections"},
    "config.checks": {"config", "config.keys", "config.sections"},
    "config.reading": {"config", "config.checks", "config.keys"},
    "data": {"config", "runtime"},
    "model": {"config", "config.keys", "runtime"},
    "task": {"config", "data", "model", "runtime"},
    "engine": {"config", "data", "model", "runtime", "task"},
    "run": {"config", "config.keys", "config.reading", "engine", "model", "runtime"},
    "tracking": {"config", "run", "runtime"},
    "session": {"config", "data", "engine", "model", "run", "runtime", "task", "tracking"},
    # commands
    "data.command": {"config", "config.reading", "data", "model", "runtime", "task"},
    "train": {"config", "config.reading", "data", "engine", "model", "run", "runtime", "session", "tracking"},
    "evaluate": {
        *("config", "config.checks", "config.keys", "config.reading", "config.sections"),
        *("data", "model", "run", "runtime", "session", "task", "tracking"),
    },
    "export": {"config", "config.reading", "model", "run", "runtime", "session", "task"},
    "merge": {"config", "config.reading", "model", "run", "runtime", "task"},
    "launch": {
        *("config", "config.checks", "config.keys", "config.reading"),
        *("data", "run", "runtime", "tracking", "train"),
    },
}
ONE_PLACE = {
    "deepspeed": "distft/engine/zero.py",
    "wandb": "distft/tracking/wandb.py",
    "submitit": "launch/cluster.py",
    "hydra": "distft/config/reading/compose.py",
    "lm_eval": "distft/evaluate/harness.py",
}


def files() -> list[Path]:
    return [file for folder in ("distft", "launch") for file in sorted((ROOT / folder).rglob("*.py"))]


def imported(file: Path, top_level_only: bool = False) -> Iterator[str]:
    """Every module that a file imports, anywhere in it; `from a import b` names both `a` and `a.b`."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules() -> dict[str, Path]:
    """Every module by name; a package by its own."""
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files()}


def graph() -> dict[str, set[str]]:
    """The modules of ours that each module imports: at its top, in a function, or for its types alone."""
    known = modules()
    found = {}
    for module, file in known.items():
        names = set(imported(file))
        ours = {name for name in names if name in known}
        # `from a import b` names a and a.b: the second is meant where it is a module.
        found[module] = {a for a in ours if not any(b.startswith(f"{a}.") for b in ours)} - {module}
    return found


def part_of(module: str) -> str | None:
    """The row of a module: its longest name in ARROWS. None: it is of no part (the errors, the package itself).

    A command that shares its folder with what others use, as `distft.data`, has a row of its own.
    """
    if module in ("distft", "distft.errors"):
        return None
    parts = module.removeprefix("distft.").replace(".__main__", ".command").split(".")
    rows = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    found = next((row for row in rows if row in ARROWS), None)
    assert found is not None, f"{module} has no row in ARROWS: which parts may it import?"
    return found


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """A way from a name back to itself; []: there is none."""
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        found = next((back for each in sorted(arrows.get(name, ())) if (back := walk(each, [*way, name]))), [])
        done.add(name)
        return found

    return next((found for name in sorted(arrows) if (found := walk(name, []))), [])


def test_a_circle_is_found_and_a_tree_is_none():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_module_imports_itself_by_way_of_others():
    assert not circle(graph())


def test_no_part_stands_on_itself_by_way_of_others():
    assert not circle(ARROWS)


def test_arrows_go_one_way_and_every_part_has_a_row():
    wrong = []
    for module, names in graph().items():
        part = part_of(module)
        for name in sorted(names):
            other = part_of(name)
            if part is not None and other is not None and other != part and other not in ARROWS[part]:
                wrong.append(f"{module} imports {name}: {part} may import {', '.join(sorted(ARROWS[part]))}")
    assert not wrong, "\n".join(wrong)


def test_no_arrow_is_drawn_that_no_import_follows():
    followed = {(part_of(module), part_of(name)) for module, names in graph().items() for name in names}
    assert not [f"{part} -> {other}" for part in ARROWS for other in ARROWS[part] if (part, other) not in followed]


def test_contributing_draws_the_same_arrows():
    rows = re.findall(
        r"^\| `([a-z.]+)` \| ([^|]+) \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    drawn = {part: set(re.findall(r"`([a-z.]+)`", arrows)) for part, arrows in rows}
    assert drawn == ARROWS


def test_the_package_holds_folders_and_the_errors():
    here = {path.name for path in (ROOT / "distft").iterdir() if path.is_file() or any(path.rglob("*.py"))}
    assert {name for name in here if "." in name} == {"__init__.py", "errors.py", "py.typed"}
    assert here - {"__init__.py", "errors.py", "py.typed"} == {row.split(".")[0] for row in ARROWS} - {"launch"}


def test_a_command_is_a_folder_whose_main_is_a_few_lines_that_nobody_imports():
    mains = [file for file in files() if file.stem == "__main__"]
    assert {str(file.parent.relative_to(ROOT)) for file in mains} >= {"distft/train", "distft/evaluate", "launch"}
    for file in mains:
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 4, file
    assert not [module for module, names in graph().items() if any(name.endswith("__main__") for name in names)]


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
    config = [str(file.relative_to(ROOT / "distft")) for file in (ROOT / "distft" / "config").rglob("*.py")]
    for file in (*config, "errors.py", "runtime/location.py", "runtime/command.py"):
        tops = {name.split(".")[0] for name in imported(ROOT / "distft" / file, top_level_only=True)}
        assert not tops & {"torch", "transformers", "peft", "datasets", "hydra"}, file


@pytest.mark.parametrize("folder", ["distft", "launch", "benchmarks", "tests"])
def test_no_file_is_called_by_what_it_is_not(folder):
    names = {file.stem for file in (ROOT / folder).rglob("*.py")} | {
        f.name for f in (ROOT / folder).rglob("*") if f.is_dir()
    }
    assert not names & {"utils", "helpers", "manager", "common"}
