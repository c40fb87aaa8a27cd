"""python -m distft.evaluate: a run's base and what it trained, side by side: loss, metrics and replies.

With `prompt=` a model that writes text, tuned or not, is asked for the labels of labelled rows.
"""

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import NonNegativeInt

from distft.config.checks.check import check
from distft.config.reading.compose import given, load_run, load_with
from distft.config.schema import Config, Section
from distft.errors import ConfigError
from distft.evaluate.fewshot import prompt_template
from distft.evaluate.fewshot.settings import Answers, Wanted
from distft.evaluate.member import Member
from distft.run.compatible import check_members, check_same_model
from distft.run.weights import find_weights
from distft.runtime import log
from distft.runtime.env import Ranks, read_ranks

# What a run needed for training and an evaluation does not; a run of 64 ranks is evaluated on one all the same.
DEFAULTS = ["engine=auto", "optim=sgd", "tracking=none", "resume=auto"]
# A base without a run has nothing to train either.
WITHOUT_RUN = ["name=base", "steps=1"]


class Evaluate(Section):
    checkpoint: str | None = None
    """A step or a checkpoint's folder; null: the run's `adapter/`, or its newest checkpoint while it trains."""


class Command(Section):
    evaluate: Evaluate = Evaluate()
    prompt: str | None = None
    """A Jinja file that shows the columns of a labelled row, and `shots` before it: labels are then asked for in words.
    In place of run= a base may be named by model=."""
    shots: NonNegativeInt | list[NonNegativeInt] = 0
    """Labelled rows of data.train that are shown before each; [0,8] measures both."""
    shots_seed: NonNegativeInt = 0
    """Draws the shots."""
    answers: Answers = Answers()
    ensemble: list[str] = []
    """Folders of runs on one base, in place of run=: each is measured, and the mean of their probabilities."""
    lm_eval: list[str] = []
    """Tasks of lm-eval (the extra `lm_eval`), or YAML files of your own, that base and trained model are put to, with
    `shots` examples each."""

    @property
    def shot_counts(self) -> list[int]:
        return self.shots if isinstance(self.shots, list) else [self.shots]


def main(argv: list[str]) -> None:
    ranks = read_ranks()
    run, config, own = read(argv)
    if problems := list(_problems(run, config, own, ranks)):
        raise ConfigError(problems)
    log.start(ranks.global_rank)
    checkpoint = own.evaluate.checkpoint
    if own.lm_eval:
        from distft.evaluate import harness

        harness.measure(run, config, checkpoint, own.lm_eval, own.shot_counts)
    elif own.prompt is not None:
        from distft.evaluate.fewshot.compare import compare

        compare(config, _wanted(run, own, own.prompt), ranks)
    elif own.ensemble:
        from distft.evaluate import ensemble

        assert run is not None
        ensemble.evaluate(config, _members(run, own), run, ranks)
    else:
        from distft.evaluate.base_and_trained import evaluate

        assert run is not None
        evaluate(run, config, checkpoint, ranks)


def read(argv: list[str]) -> tuple[Path | None, Config, Command]:
    """The run that is asked about, or None and a base; its config with what an evaluation changes, and the own keys.

    Other held-out data stands alone: nothing of it is cut off, and the training data is not read.
    An ensemble is of the first run's task, data and model.
    """
    keys = given(argv)
    words = list(DEFAULTS)
    if "data.eval" in keys and keys["data.eval"].value() is not None:
        alone = f"data.train={keys['data.eval'].get_value_string()}"
        words += [alone, "data.eval_fraction=0", "data.replay=null", "data.replay_share=0.1"]
    if keys.keys() & {"prompt", "lm_eval"} and not keys.keys() & {"run", "ensemble"}:
        base = [] if "exp" in keys else WITHOUT_RUN
        return None, *load_with([*base, *words, *argv], Command, program="distft.evaluate")
    if "ensemble" in keys and "run" not in keys:
        members = keys["ensemble"].value()
        first = str(members[0]) if isinstance(members, list) and members else keys["ensemble"].get_value_string()
        words.append(f"run={json.dumps(first, ensure_ascii=False)}")
    return load_run([*words, *argv], Command, program="distft.evaluate", here=True)


def _members(run: Path | None, own: Command) -> list[Member]:
    """The runs that are asked about, each by its folder's name, or by its path where two have the same."""
    folders = [Path(member).expanduser() for member in own.ensemble] or ([run] if run is not None else [])
    alike = len({each.name for each in folders}) < len(folders)
    checkpoint = own.evaluate.checkpoint
    return [Member(str(each) if alike else each.name, each, find_weights(each, checkpoint)) for each in folders]


def _wanted(run: Path | None, own: Command, file: str) -> Wanted:
    text = Path(file).expanduser().read_text(encoding="utf-8")
    prompt = prompt_template.Prompt(file, text, own.answers.column, own.answers.words or {})
    members = _members(run, own)
    return Wanted(prompt, own.shot_counts, own.shots_seed, own.answers, members, bool(own.ensemble), run)


def _problems(run: Path | None, config: Config, own: Command, ranks: Ranks) -> Iterator[str]:
    yield from check({"engine": config.engine}, world_size=ranks.world_size, here=False)
    if run is not None:
        yield from check_same_model(run, config)
        if not os.access(run, os.W_OK):
            yield f"run: must be a folder that can be written, got {run}; copy it to one that can"
    if not own.shot_counts:
        yield "shots: must be a number or a list of them, got an empty list; give shots=0"
    if own.prompt is not None:
        yield from prompt_template.check(own.prompt, own.shot_counts or [0], own.answers.column, own.answers.words)
    else:
        for key in ("shots_seed", "answers") if own.lm_eval else ("shots", "shots_seed", "answers"):
            if getattr(own, key) != Command.model_fields[key].get_default():
                yield f"{key}: belongs to prompt=, got it without; give prompt=FILE, or remove it"
    if own.ensemble:
        yield from _ensemble_problems(run, config, own)
    if own.lm_eval:
        yield from _lm_eval_problems(own, ranks)


def _ensemble_problems(run: Path | None, config: Config, own: Command) -> Iterator[str]:
    others = [Path(member).expanduser() for member in own.ensemble]
    if len({other.absolute() for other in others}) < 2:
        yield f"ensemble: must be two folders of runs or more, got {own.ensemble}; give ensemble=[runs/A,runs/B]"
    if run is not None:
        yield from check_members(run, others, "ensemble", shape=type(config.adapter).model_fields)
    if own.prompt is None and not config.task.traits.averages:
        yield (
            f"ensemble: must be of runs that give probabilities of labels, task=sequence_classification, got "
            f"{config.task.name}; for a model that writes text give prompt= besides"
        )


def _lm_eval_problems(own: Command, ranks: Ranks) -> Iterator[str]:
    if importlib.util.find_spec("lm_eval") is None:
        yield "lm_eval: must have the package lm-eval, which is not installed; pip install 'distft[lm_eval]'"
    for file in (name for name in own.lm_eval if name.endswith((".yaml", ".yml"))):
        if not Path(file).expanduser().is_file():
            yield f"lm_eval: must be names of lm-eval's tasks, or YAML files that are there, got {file}; check the path"
    if own.prompt is not None or own.ensemble:
        beside = "prompt" if own.prompt is not None else "ensemble"
        yield f"lm_eval: must stand alone, its tasks have prompts of their own, got {beside}= besides; remove one"
    if ranks.world_size > 1:
        yield f"lm_eval: must run as one process, got {ranks.world_size}; start it without torchrun or srun"
