"""What the tests of prompts run on every rank."""

from typing import Any

from distft.config import schema
from distft.evaluate.fewshot.compare import Wanted, ask, measure
from distft.runtime.group import Group


def table(group: Group, config: schema.Config, wanted: Wanted) -> list[dict[str, Any]]:
    return measure(config, wanted, ask(config, wanted), group)
