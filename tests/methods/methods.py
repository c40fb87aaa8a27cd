"""The methods of the matrix: the shipped option files, made small enough for a tiny model, and the rest of PEFT's."""

from functools import cache
from typing import Any

import yaml
from families import FAMILIES

from distft.config import schema
from distft.config.checks import check as checks
from distft.config.reading.folders import conf_dir
from distft.config.sections.peft_table import OPTIONS
from distft.config.sections.peft_traits import UNFIT
from distft.errors import ConfigError
from distft.model.adapter import attach as adapter
from distft.model.load import read_hf_config
from distft.task import build as tasks

ENGINES = ["single", "fsdp", "zero3"]
BASES = {"fp32": "none", "nf4": "nf4"}
SMALL: dict[str, dict[str, Any]] = {
    # Sizes that go with 32 hidden units; everything else is as the option's file has it.
    "adalora": {"init_r": 6, "target_r": 3, "tinit": 1},
    "adaption_prompt": {"adapter_len": 4, "adapter_layers": 2},
    "boft": {"boft_block_size": 8},
    "c3a": {"block_size": 16},
    "fourierft": {"n_frequency": 50},
    "miss": {"r": 8},
    "oft": {"oft_block_size": 8},
    "p_tuning": {"num_virtual_tokens": 4, "encoder_hidden_size": 16},
    "prefix_tuning": {"num_virtual_tokens": 4},
    "prompt_tuning": {"num_virtual_tokens": 4},
    "pvera": {"r": 8},
    "road": {"group_size": 16},
    "trainable_tokens": {"token_indices": list(range(200))},
    "vblora": {"vector_length": 16, "num_vectors": 8},
    "vera": {"r": 8},
    "waveft": {"n_frequency": 50},
}
UNTARGETED = {"adaption_prompt", "beft", "ia3", "ln_tuning", "trainable_tokens"}
"""Methods that find their modules themselves, besides those of virtual tokens."""


@cache
def shipped(family: str = "causal_lm") -> dict[str, dict[str, Any]]:
    """Each file of `conf/adapter` as a section, small."""
    found = {}
    for file in sorted((conf_dir() / "adapter").glob("*.yaml")):
        section = dict(yaml.safe_load(file.read_text()))
        if "defaults" in section:
            base = yaml.safe_load((conf_dir() / "adapter" / f"{section.pop('defaults')[0]}.yaml").read_text())
            section = {**base, **section}
        found[file.stem] = _small(section, family)
    return found


@cache
def unshipped(family: str = "causal_lm") -> dict[str, dict[str, Any]]:
    """The methods of PEFT that fit and have no file, with PEFT's defaults."""
    have = {section["method"] for section in shipped().values()}
    return {
        name: _small({"method": name, "targets": None if name in UNTARGETED else "all-linear", "options": {}}, family)
        for name in OPTIONS
        if name not in UNFIT and name not in have
    }


def cells(family: str, name: str) -> list[tuple[str, str]]:
    """Engine and base of each run of a method: all of them for the shipped options, fewer for the rest of PEFT's."""
    every = [(engine, base) for engine in ENGINES for base in BASES]
    if name in shipped():
        return every
    return [cell for cell in every if "single" in cell or "nf4" in cell] if family == "causal_lm" else every[:1]


def resumes(family: str, engine: str, base: str) -> bool:
    """Whether a run on two ranks is stopped and goes on: what differs there is base and engine rather than the task."""
    return base == "nf4" and (engine == "fsdp" or family == "causal_lm")


def _small(section: dict[str, Any], family: str) -> dict[str, Any]:
    if section.get("targets") == "all-linear":
        section["targets"] = FAMILIES[family].targets
    if section["method"] == "bottleneck":
        section["targets"] = FAMILIES[family].sublayers
    if section["method"] == "ln_tuning":
        section["targets"] = FAMILIES[family].norms
    if section["method"] in SMALL:
        section["options"] = {**section["options"], **SMALL[section["method"]]}
    sizes = {"r": 4, "size": 8, "count": 1}
    return section | {key: value for key, value in sizes.items() if key in section}


def refusals(config: schema.Config) -> list[str]:
    """What the config's checks have against a run, or the model that it names."""
    sections = {name: getattr(config, name) for name in schema.Config.model_fields}
    found = checks.check(sections, world_size=1 if config.engine.name == "single" else 2, here=False)
    return found or _misfits(config.model_copy(update={"engine": schema.Auto(name="auto")}).model_dump_json())


@cache
def _misfits(as_json: str) -> list[str]:
    """What attaching the method to the model has against it."""
    config = schema.Config.model_validate_json(as_json)
    architecture = tasks.build(config.task).architecture(FAMILIES[config.task.name].facts)
    model = architecture.skeleton(read_hf_config(config.model), "sdpa")
    heads = architecture.new_modules(model)
    try:
        adapter.attach(model, config.adapter, seed=config.seed, heads=heads, task=architecture.peft_task)
    except ConfigError as error:
        return error.problems
    return []
