"""Settings of a comparison by prompt. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distft.config.sections.section import Section
from distft.evaluate.fewshot.prompt_template import Prompt
from distft.evaluate.member import Member


class Answers(Section):
    column: str = "label"
    """The column of a row's label."""
    words: dict[str, str] | None = None
    """What the model says for each label; null: the label itself, for every label of the data."""
    scoring: Literal["likelihood", "generation"] = "likelihood"
    """`likelihood`: the word that the model finds likeliest; `generation`: what it writes must begin with the word."""
    per_token: bool = False
    """Compare likelihoods by token: long words are then not at a disadvantage."""
    chat: bool = False
    """Put the prompt into the model's chat template, as what the user says."""


@dataclass(frozen=True)
class Wanted:
    """The base and every member are asked with every number of shots."""

    prompt: Prompt
    shots: list[int]
    seed: int
    answers: Answers
    members: list[Member]
    ensemble: bool
    """Ask the members, and all together, in place of the base."""
    folder: Path | None
    """Where `fewshot.json` goes; null: nowhere."""
