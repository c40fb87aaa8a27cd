"""Labelled rows asked through a prompt: base and adapters, with no shots and with some, in one table."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from distft.config.schema import Config, Section
from distft.errors import ConfigError
from distft.evaluate.fewshot.prompt import Prompt
from distft.run.weights import facts_beside
from distft.runtime import log
from distft.runtime.env import Ranks

if TYPE_CHECKING:
    from distft.evaluate.fewshot.rows import Labelled

RESULT = "fewshot.json"


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
class Candidate:
    """A column of weights on the base; null: the base itself."""

    name: str
    weights: Path | None
    run: Path | None = None


@dataclass(frozen=True)
class Wanted:
    prompt: Prompt
    shots: list[int]
    seed: int
    answers: Answers
    candidates: list[Candidate]
    ensemble: bool
    folder: Path | None
    """Where `fewshot.json` goes; null: nowhere."""


def compare(config: Config, wanted: Wanted, ranks: Ranks) -> dict[str, Any]:
    """Every candidate with every number of shots; prints a table, writes `fewshot.json`. Every rank calls it.

    Raises ConfigError where data, prompt or model do not fit.
    """
    log.start(ranks.global_rank)

    from distft.runtime.group import Group

    asked = ask(config, wanted)
    group = Group(ranks)
    rows = measure(config, wanted, asked, group)
    labelled = asked[0].labelled
    result = {
        "prompt": wanted.prompt.file,
        "words": {label: wanted.prompt.word(label) for label in labelled.labels},
        "scoring": wanted.answers.scoring,
        "shots_seed": wanted.seed,
        "documents": len(labelled.held_out),
        "rows": rows,
        "weights": {each.name: str(each.weights) for each in wanted.candidates if each.weights is not None},
        "time": time.time(),
    }
    if ranks.is_main:
        _show(result)
        if wanted.folder is not None:
            wanted.folder.mkdir(parents=True, exist_ok=True)
            aside = wanted.folder / f".{RESULT}"
            aside.write_text(json.dumps(result, indent=2, ensure_ascii=False), encoding="utf-8")
            aside.replace(wanted.folder / RESULT)
            print(f"written   {wanted.folder / RESULT}")
    group.barrier()
    group.leave()
    return result


def ask(config: Config, wanted: Wanted) -> "list[Asked]":
    """The held-out rows with each number of shots. Raises ConfigError where data, prompt or context do not fit."""
    from distft.evaluate.fewshot.rows import read
    from distft.model.load import read_hf_config
    from distft.model.tokenizer import load_tokenizer

    labelled = read(config.data, wanted.prompt, max(wanted.shots) > 0)
    tokenizer = load_tokenizer(config.model, config.data.chat_template)
    asked = [Asked(labelled, wanted, shots, tokenizer) for shots in wanted.shots]
    context = read_hf_config(config.model)
    for each in asked:
        each.check(context)
    return asked


def measure(config: Config, wanted: Wanted, asked: "list[Asked]", group: Any) -> list[dict[str, Any]]:
    """The table's rows: every candidate with every number of shots, then the ensemble. Every rank gets them."""
    from distft.session.session import set_up

    stage = set_up(
        config,
        group,
        _architecture(config, wanted),
        _chooser,
        runs=[each.run for each in wanted.candidates if each.run is not None],
        weights=[each.weights for each in wanted.candidates if each.weights is not None],
    )
    rows, measured, trained = [], dict[int, list[np.ndarray]](), iter(stage.trained)
    for candidate in wanted.candidates:
        if candidate.weights is not None:
            stage.engine.load_trainable_state(next(trained).read)
        for each in asked:
            chances = each.chances(stage.engine, group)
            measured.setdefault(each.shots, []).append(chances)
            rows.append({"model": candidate.name, "shots": each.shots, **each.numbers(chances)})
    for each in asked if wanted.ensemble else []:
        mean = np.mean(measured[each.shots], axis=0)
        rows.append({"model": "ensemble", "shots": each.shots, **each.numbers(mean)})
    return rows


def _architecture(config: Config, wanted: Wanted) -> Any:
    """Raises ConfigError for a run whose model writes no text."""
    from transformers import AutoModelForCausalLM

    from distft.model.architecture import CAUSAL
    from distft.task import build as tasks

    first = next((each.weights for each in wanted.candidates if each.weights is not None), None)
    architecture = CAUSAL
    if first is not None:
        architecture = replace(tasks.build(config.task).architecture(facts_beside(first) or {}), teacher=None)
    if architecture.auto is not AutoModelForCausalLM or architecture.heads:
        raise ConfigError(
            f"prompt: must go with a run whose model writes text, got task={config.task.name}; "
            "remove prompt= to measure such a run by its own head"
        )
    return architecture


def _chooser(loaded: Any) -> Any:
    """Raises ConfigError for an encoder."""
    from distft.evaluate.fewshot.choice import Chooser

    chooser = Chooser(loaded.model, loaded.compute_dtype)
    if any(getattr(part, "is_causal", True) is False for part in chooser.base.base_model.modules()):
        raise ConfigError(
            f"prompt: must be asked of a model that writes text, got an encoder, {type(chooser.base).__name__}; "
            "take another model"
        )
    return chooser


class Asked:
    """The held-out rows with a number of shots before them."""

    def __init__(self, labelled: "Labelled", wanted: Wanted, shots: int, tokenizer: Any):
        from distft.evaluate.fewshot.prompt import openings, questions
        from distft.evaluate.fewshot.rows import draw

        self.labelled, self.shots, self.answers, self.tokenizer = labelled, shots, wanted.answers, tokenizer
        self.words = [wanted.prompt.word(label) for label in labelled.labels]
        drawn = draw(labelled, wanted.prompt, shots, wanted.seed)
        prompts = list(wanted.prompt.render(labelled.held_out, drawn))
        self.questions = list(questions(prompts, self.words, tokenizer, wanted.answers.chat))
        self.openings = (
            openings(prompts, tokenizer, wanted.answers.chat) if wanted.answers.scoring == "generation" else []
        )

    def check(self, context: Any) -> None:
        from distft.evaluate.fewshot.choice import check_context
        from distft.evaluate.fewshot.tree import longest

        check_context(context, longest(self.questions))

    def chances(self, engine: Any, group: Any) -> np.ndarray:
        """float64 [rows, labels]: how likely each answer is among them; of replies, 1 for the one that was given."""
        return self._written(engine) if self.openings else self._likely(engine, group)

    def numbers(self, chances: np.ndarray) -> dict[str, float]:
        from distft.task import classification

        truth, found = self.labelled.truth, chances.argmax(1)
        none = chances.sum(1) == 0
        numbers = classification.numbers(truth, np.where(none, -1, found))
        if self.openings:
            return {**numbers, "unmatched": float(none.mean())}
        loss = -np.log(np.maximum(chances[np.arange(len(truth)), truth], np.finfo(np.float64).tiny)).mean()
        return {"loss": float(loss), **numbers}

    def _likely(self, engine: Any, group: Any) -> np.ndarray:
        from distft.evaluate.fewshot.tree import trees

        mine: dict[int, np.ndarray] = {}
        for tree in trees(self.questions, group.ranks.global_rank, group.ranks.world_size):
            _, likelihoods = engine.evaluate(tree)
            mine.update(zip(tree.documents, likelihoods, strict=True))
        everyone = {number: row for share in group.gather(mine) for number, row in share.items()}
        likelihoods = np.stack([everyone[number] for number in range(len(self.questions))])
        if self.answers.per_token:
            likelihoods = likelihoods / np.array(list(self._answer_tokens()))
        chances = np.exp(likelihoods - likelihoods.max(1, keepdims=True))
        return chances / chances.sum(1, keepdims=True)

    def _answer_tokens(self) -> Iterator[list[int]]:
        for each in self.questions:
            yield [len(tokens) - first for tokens, first in zip(each.answers, each.scored_from, strict=True)]

    def _written(self, engine: Any) -> np.ndarray:
        from distft.evaluate.fewshot.prompt import match
        from distft.task.generate import Prompts

        most = max(max(counts) for counts in self._answer_tokens())
        asked = Prompts(self.openings, most + 2, [self.tokenizer.eos_token_id], self.tokenizer.pad_token_id)
        chances = np.zeros((len(self.questions), len(self.words)))
        for row, reply in zip(chances, engine.generate(asked), strict=True):
            found = match(self.tokenizer.decode(reply, skip_special_tokens=True), self.words)
            if found >= 0:
                row[found] = 1
        return chances


def _show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    from distft.tracking.console import number, visible

    names = list(dict.fromkeys(name for row in result["rows"] for name in row))[2:]
    columns = [Column("shots", justify="right"), *(Column(name, justify="right") for name in names)]
    title = f"{result['documents']:,} labelled rows, {len(result['words'])} labels, by {result['scoring']}"
    table = Table("", *columns, box=None, title=title)
    for row in result["rows"]:
        table.add_row(visible(row["model"]), str(row["shots"]), *(number(row.get(name), ".4f") for name in names))
    Console(highlight=False, markup=False).print(table)
