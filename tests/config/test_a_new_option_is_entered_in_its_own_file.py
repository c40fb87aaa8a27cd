"""Checks ask a section for its traits: of a task, an adapter and an engine that stand here alone they know enough."""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

import distft
from distft.config.checks import check as checks
from distft.config.keys import choices, known, options
from distft.config.reading import compose as composing
from distft.config.reading.folders import conf_dir, group_options
from distft.config.schema import Config, Section
from distft.config.sections.traits import AdapterTraits, EngineTraits, TaskTraits
from distft.export import command as export
from distft.runtime.env import read_ranks

DISTFT = Path(distft.__file__).parent


class Stars(Section):
    traits: ClassVar[TaskTraits] = TaskTraits(
        formats={"rated": ("text", "stars")},
        metrics=("accuracy", "error"),
        lower_is_better=("error",),
        packages={"no_such_module": "no-such-package"},
        pads=True,
    )

    name: Literal["stars"] = "stars"


class Gates(Section):
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        is_peft=False,
        unmergeable="its gates look at each token",
        unshardable="one gate opens for all blocks",
        every_weight=True,
        dropout=0.0,
    )

    method: Literal["gates"] = "gates"


class Rows(Section):
    traits: ClassVar[EngineTraits] = EngineTraits(
        one_rank=True, shards_blocks=True, splits_weights=True, flattens=True, package="no_such_module"
    )

    name: Literal["rows"] = "rows"


@pytest.fixture
def told(compose: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """What the checks have against `+exp=llama_lora WORDS` with sections in place of its own."""

    def run(*words: str, here: bool = False, world_size: int = 1, **sections: Section) -> list[str]:
        with monkeypatch.context() as patch:
            patch.setattr(composing, "check", lambda valid, **rest: [])  # they are asked below, of all sections
            config = compose("+exp=llama_lora", "evaluation.samples=0", *words)
        valid: dict[str, Any] = {name: getattr(config, name) for name in Config.model_fields}
        return checks.check({**valid, **sections}, world_size=world_size, here=here)

    return run


def test_a_task_with_a_head_is_taken_as_it_is(told):
    assert told(task=Stars()) == []


UNPACKED = ["data.packing=false"]
BESIDE = {
    "trainable_tokens": ["adapter.options.token_indices=[0,1]"],
    "loftq": ["model.quantization=nf4"],
    "prefix": UNPACKED,
    "prompt": UNPACKED,
    "p_tuning": UNPACKED,
}
HEADLESS = "be one that is saved with the new head of task=stars, got {}, in whose files PEFT keeps no other modules"
VIRTUAL = "be one that task=stars can use, got {}, whose virtual tokens its model does not pass over"
REFUSED = {
    "adaption_prompt": HEADLESS.format("adaption_prompt"),
    "trainable_tokens": HEADLESS.format("trainable_tokens"),
    "prefix": VIRTUAL.format("prefix_tuning"),
    "prompt": VIRTUAL.format("prompt_tuning"),
    "p_tuning": VIRTUAL.format("p_tuning"),
}


@pytest.mark.parametrize("option", group_options([conf_dir()])["adapter"])
def test_a_task_with_a_head_is_refused_to_the_methods_that_cannot_save_it(told, option):
    found = told(f"adapter={option}", *BESIDE.get(option, []), task=Stars())
    expected = [f"adapter.method: must {REFUSED[option]}; use adapter=lora"] if option in REFUSED else []
    assert found == expected


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["data.format=labelled"], "data.format: must be one of rated for task=stars, got labelled"),
        (
            ["evaluation.metric=eror"],
            "evaluation.metric: must be one of loss, accuracy, error for task=stars, got eror",
        ),
        (["evaluation.samples=2"], "evaluation.samples: must be 0 for task=stars, whose model writes no replies"),
        (["model.attention=varlen"], "model.attention: must be auto, sdpa or eager for task=stars, whose models pad"),
        (["regularisation.label_smoothing=0.1"], "regularisation.label_smoothing: must be 0 with task=stars"),
        (
            ["regularisation.r_drop=1", "adapter.dropout=0.1"],
            "regularisation.r_drop: must be 0 with task=stars, whose loss does not compare two dropout masks, got 1",
        ),
        (
            ["adapter=bottleneck", "model.quantization=nf4"],
            "model.quantization: must be none with adapter=bottleneck on task=stars",
        ),
    ],
)
def test_a_task_is_refused_what_it_does_not_say_that_it_has(told, words, start):
    (problem,) = told(*words, task=Stars())
    assert problem.startswith(start) and "; " in problem


@pytest.mark.parametrize(
    "words",
    [["evaluation.metric=error"], ["regularisation.neftune_alpha=5"], ["model.attention=eager"], ["data.format=rated"]],
)
def test_a_task_is_given_what_it_says_that_it_has(told, words):
    assert told(*words, task=Stars()) == []


def test_the_packages_of_a_task_and_an_engine_are_looked_for(told):
    found = told("data.train=package://chatterbot_corpus/data/english", task=Stars(), engine=Rows(), here=True)
    assert any(
        s.startswith("task: stars must have the packages that measure it, got no no-such-package;") for s in found
    )
    assert any(s.startswith("engine: rows must have the package no_such_module, which is not installed") for s in found)


def test_the_best_value_of_a_metric_is_the_one_that_its_task_says():
    better = Stars.traits.is_better
    assert better("accuracy", 0.9, 0.8) and not better("accuracy", 0.8, 0.8)
    assert better("error", 0.1, 0.2) and better("loss", 0.1, 0.2) and not better("error", 0.3, 0.2)


@pytest.mark.parametrize(
    ("words", "sections", "start"),
    [
        (["model.quantization=nf4"], {}, "model.quantization: must be none where every weight trains, got nf4"),
        (["engine=zero3"], {}, "engine: must be able to split what gates trains, got zero3: one gate opens for all"),
        ([], {"engine": Rows()}, "engine: must be able to split what gates trains, got rows: one gate opens for all"),
        (["regularisation.r_drop=1"], {}, "regularisation.r_drop: must have dropout, whose masks it compares"),
        (["task=preference"], {}, "adapter: must be one that can be switched off where the base is the reference of"),
    ],
)
def test_an_adapter_is_refused_what_its_traits_do_not_go_with(told, words, sections, start):
    (problem,) = told(*words, adapter=Gates(), **sections)
    assert problem.startswith(start) and "; " in problem
    assert told(adapter=Gates()) == []


@pytest.mark.parametrize(
    ("to", "why"),
    [
        ("merged", "export.to: must be adapter with adapter.method=gates, got merged: its gates look at each token"),
        ("adapter", "export.to: must be a form that others read, got adapter: PEFT has no gates adapters"),
    ],
)
def test_an_adapter_is_exported_as_its_traits_allow(compose, tmp_path, to, why):
    config = compose("+exp=llama_lora").model_copy(update={"adapter": Gates()})
    (problem,) = export._problems(config, export.Export(to=to), tmp_path / "new", read_ranks())
    assert problem.startswith(why)


@pytest.mark.parametrize(
    ("words", "world_size", "start"),
    [
        ([], 2, "engine: must be one for 2 ranks, got rows"),
        (["optim=adafactor"], 1, "optim: adafactor needs each weight whole, which engine=rows splits"),
        (["optim.weight_decay_on=matrices"], 1, "optim.weight_decay_on: must be all with engine=rows"),
    ],
)
def test_an_engine_is_refused_what_its_traits_do_not_go_with(told, words, world_size, start):
    (problem,) = told(*words, engine=Rows(), world_size=world_size)
    assert problem.startswith(start) and "; " in problem
    assert told(engine=Rows()) == []


# What the code may still ask by name, below.

OPTIONS = {tag: model for field in Config.model_fields.values() for tag, model in options(field).items() if tag}
CLASSES = {model.__name__ for model in OPTIONS.values()}
PLAIN = {word for key in known(Config.model_fields) if not key.path.endswith((".name", ".method"))
         for word in choices(key.field.annotation)}  # fmt: skip
"""Words that are choices of plain keys too, as `none` and `auto` are."""
BUILDERS = {
    "distft/config/sections/engine.py",
    "distft/engine/build.py",
    "distft/engine/optim.py",
    "distft/engine/zero.py",
    "distft/model/adapter/attach.py",
    "distft/model/adapter/own_weights.py",
    "distft/model/adapter/peft_methods.py",
    "distft/tracking/build.py",
    "launch/cluster.py",
    "launch/command.py",
}
"""Where an option becomes what it names, or a union is narrowed to read an option's own keys."""


def names(node: ast.AST) -> set[str]:
    """Of all variables, attributes and imports in a piece of code."""
    found = set()
    for each in ast.walk(node):
        found |= {each.id} if isinstance(each, ast.Name) else {each.attr} if isinstance(each, ast.Attribute) else set()
        found |= {each.name} if isinstance(each, ast.alias) else set()
    return found


@pytest.mark.parametrize("file", sorted((DISTFT / "config" / "checks").glob("*.py")), ids=lambda file: file.stem)
def test_a_check_names_no_option(file):
    tree = ast.parse(file.read_text())
    assert not names(tree) & (CLASSES | {"isinstance", "issubclass"})
    compared = [part for node in ast.walk(tree) if isinstance(node, ast.Compare) for part in ast.walk(node)]
    words = {part.value for part in compared if isinstance(part, ast.Constant)}
    assert not words & (OPTIONS.keys() - PLAIN)


def test_sections_are_told_apart_by_class_only_where_something_is_built_of_them():
    found = set()
    for file in [*DISTFT.rglob("*.py"), *(DISTFT.parent / "launch").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and names(node.func) == {"isinstance"}:
                mixed = {"Bottleneck"} if file.stem == "bottleneck" else set()  # its module has the same name
                if names(node.args[1]) & (CLASSES - mixed):
                    found.add(str(file.relative_to(DISTFT.parent)))
    assert found == BUILDERS
