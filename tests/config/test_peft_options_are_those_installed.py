"""The committed table of PEFT's methods is what the installed PEFT has, and every one of them can be asked for."""

from typing import Any

import pytest
from config import peft_table

from distft.config.schema import Lora, Peft
from distft.config.sections.adapter import OWN_KEYS
from distft.config.sections.peft_table import OPTIONS
from distft.config.sections.peft_traits import DIFFERENT, UNFIT


@pytest.fixture(scope="module")
def configs() -> dict[str, Any]:
    """PEFT's own config classes, by our name of the method."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return {kind.value.lower(): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}


def test_the_committed_table_is_that_of_the_installed_peft():
    assert peft_table.PLACE.read_text() == peft_table.text(), "run python -m tests.config.peft_table"


def test_every_method_of_peft_is_known_and_all_that_is_told_of_them_is_of_one(configs: dict[str, Any]):
    assert set(OPTIONS) == set(configs)
    assert set(DIFFERENT) | set(UNFIT) <= set(configs)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_defaults_of_peft_pass_its_own_types(name: str, configs: dict[str, Any]):
    import dataclasses
    import enum

    defaults = {
        field.name: field.default.value if isinstance(field.default, enum.Enum) else field.default
        for field in dataclasses.fields(configs[name])
        if field.name in OPTIONS[name] and field.default is not dataclasses.MISSING
    }
    assert defaults or name in ("trainable_tokens", "xlora")
    refused = {"adapter.options.total_step", *(f"adapter.options.{key}" for key in OWN_KEYS)}
    section = Lora(method="lora", options=defaults) if name == "lora" else Peft(method=name, options=defaults)
    told = [sentence for sentence in section.problems() if ": must be set for" not in sentence]
    assert [s for s in told if s.startswith("adapter.options.") and s.split(":")[0] not in refused] == []
