"""Labelled rows asked through a prompt: base and adapters, with no shots and with some, in one table."""

from dataclasses import dataclass, replace

import numpy as np
from transformers import AutoModelForCausalLM

from distft.config.schema import Config
from distft.errors import ConfigError
from distft.evaluate import tables
from distft.evaluate.fewshot.asked import Asked, ask
from distft.evaluate.fewshot.choice import Chooser
from distft.evaluate.fewshot.settings import Wanted
from distft.evaluate.results import FewShot, Measurement
from distft.model.architecture import CAUSAL, Architecture
from distft.model.load import Loaded
from distft.run.tensors import TensorFolder
from distft.run.weights import facts_beside
from distft.runtime.env import Ranks
from distft.session.session import Session
from distft.task import build as tasks


def compare(config: Config, wanted: Wanted, ranks: Ranks) -> FewShot:
    """Base and members with every number of shots; prints a table, writes `fewshot.json`. Every rank calls it.

    Raises ConfigError where data, prompt or model do not fit.
    """
    asked = ask(config, wanted)
    labelled = asked[0].labelled
    runs, weights = [each.run for each in wanted.members], [each.weights for each in wanted.members]
    model = Choosing(architecture(config, wanted))
    with Session.open(config, ranks, model, runs=runs, weights=weights) as session:
        result = FewShot(
            prompt=wanted.prompt.file,
            words={label: wanted.prompt.word(label) for label in labelled.labels},
            scoring=wanted.answers.scoring,
            shots_seed=wanted.seed,
            documents=len(labelled.held_out),
            rows=measure(session, wanted, asked),
            weights={each.name: str(each.weights) for each in wanted.members},
        )
        if ranks.is_main:
            tables.print_few_shot(result)
            if wanted.folder is not None:
                print(f"written   {result.write(wanted.folder)}")
    return result


def measure(session: Session, wanted: Wanted, asked: list[Asked]) -> list[Measurement]:
    """The table's rows: base and members with every number of shots, then the ensemble. Every rank gets them."""
    rows, measured = [], dict[int, list[np.ndarray]]()
    columns: list[tuple[str, TensorFolder | None]] = [] if wanted.ensemble else [("base", None)]
    columns += zip([each.name for each in wanted.members], session.trained, strict=True)
    for name, weights in columns:
        if weights is not None:
            session.engine.load_trainable_state(weights.read)
        for each in asked:
            chances = each.chances(session)
            measured.setdefault(each.shots, []).append(chances)
            rows.append(Measurement(name, each.shots, each.numbers(chances)))
    for each in asked if wanted.ensemble else []:
        mean = np.mean(measured[each.shots], axis=0)
        rows.append(Measurement("ensemble", each.shots, each.numbers(mean)))
    return rows


def architecture(config: Config, wanted: Wanted) -> Architecture:
    """The model that is asked. Raises ConfigError for a run whose model writes no text."""
    found = CAUSAL
    if wanted.members:
        facts = facts_beside(wanted.members[0].weights) or {}
        found = replace(tasks.build(config.task).architecture(facts), teacher=None)
    if found.auto is not AutoModelForCausalLM or found.heads:
        raise ConfigError(
            f"prompt: must go with a run whose model writes text, got task={config.task.name}; "
            "remove prompt= to measure such a run by its own head"
        )
    return found


@dataclass(frozen=True)
class Choosing:
    """The model as one that chooses."""

    architecture: Architecture

    def module(self, loaded: Loaded) -> Chooser:
        """Raises ConfigError for an encoder."""
        made = Chooser(loaded.model, loaded.compute_dtype)
        if any(getattr(part, "is_causal", True) is False for part in made.base.base_model.modules()):
            raise ConfigError(
                f"prompt: must be asked of a model that writes text, got an encoder, {type(made.base).__name__}; "
                "take another model"
            )
        return made
