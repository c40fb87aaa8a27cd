"""What the tests of prompts run on every rank."""

from typing import Any

from distft.config import schema
from distft.evaluate.fewshot.asked import ask
from distft.evaluate.fewshot.compare import Choosing, architecture, measure
from distft.evaluate.fewshot.settings import Wanted
from distft.runtime.group import Group
from distft.session.session import Session


def table(group: Group, config: schema.Config, wanted: Wanted) -> list[dict[str, Any]]:
    session = Session.start(config, group, Choosing(architecture(config, wanted)))
    return [row.content() for row in measure(session, wanted, ask(config, wanted))]
