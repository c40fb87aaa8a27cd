"""python -m distft.evaluate: a run's base and what it trained, side by side: loss, metrics and replies.

With `prompt=` a model that writes text, tuned or not, is asked for the labels of labelled rows.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import NonNegativeInt

from distft.config.checks.check import check
from distft.config.reading.compose import load_run, load_with
from distft.config.schema import Config, Section
from distft.errors import ConfigError
from distft.evaluate import ensemble as ensembles
from distft.evaluate import harness
from distft.evaluate.fewshot import prompt as prompts
from distft.evaluate.fewshot.compare import Answers, Candidate, Wanted, compare
from distft.run.compatible import check_members, check_same_model
from distft.run.weights import facts_beside, find_weights
from distft.runtime import log
from distft.runtime.env import Ranks, read_ranks

if TYPE_CHECKING:
    from rich.console import Console

    from distft.data.corpus import Corpus
    from distft.session.held_out import HeldOut
    from distft.task.seam import Scores

RESULT = "evaluation.json"
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


@dataclass(frozen=True)
class Measured:
    """One column: held-out loss, metrics, and replies."""

    numbers: dict[str, float]
    replies: list[str]
    scores: "Scores"


def main(argv: list[str]) -> None:
    ranks = read_ranks()
    words = _with_defaults(argv)
    run: Path | None = None
    if _names_a_base(argv):
        base = [] if any(word.startswith("+exp=") for word in argv) else WITHOUT_RUN
        config, own = load_with([*base, *words], Command, program="distft.evaluate")
    else:
        run, config, own = load_run(words, Command, program="distft.evaluate", here=True)
    problems = check({"engine": config.engine}, world_size=ranks.world_size, here=False)
    if run is not None:
        problems += check_same_model(run, config)
        if not os.access(run, os.W_OK):
            problems.append(f"run: must be a folder that can be written, got {run}; copy it to one that can")
    problems += _problems(run, config, own, ranks)
    if problems:
        raise ConfigError(problems)
    checkpoint = own.evaluate.checkpoint
    if own.lm_eval:
        harness.measure(run, config, checkpoint, own.lm_eval, _shots(own))
        return
    if own.prompt is None and not own.ensemble:
        assert run is not None
        evaluate(run, config, checkpoint, ranks)
        return
    folders = [Path(member).expanduser() for member in own.ensemble] or ([run] if run is not None else [])
    alike = len({each.name for each in folders}) < len(folders)
    members = [Candidate(str(each) if alike else each.name, find_weights(each, checkpoint), each) for each in folders]
    if own.prompt is None:
        assert run is not None
        ensembles.evaluate(config, members, run, ranks)
        return
    text = Path(own.prompt).expanduser().read_text(encoding="utf-8")
    prompt = prompts.Prompt(own.prompt, text, own.answers.column, own.answers.words or {})
    candidates = members if own.ensemble else [Candidate("base", None), *members]
    wanted = Wanted(prompt, _shots(own), own.shots_seed, own.answers, candidates, bool(own.ensemble), run)
    compare(config, wanted, ranks)


def _problems(run: Path | None, config: Config, own: Command, ranks: Ranks) -> Iterator[str]:
    shots = _shots(own)
    if not shots:
        yield "shots: must be a number or a list of them, got an empty list; give shots=0"
    if own.prompt is not None:
        yield from prompts.check(own.prompt, shots or [0], own.answers.column, own.answers.words)
    else:
        for key in ("shots_seed", "answers") if own.lm_eval else ("shots", "shots_seed", "answers"):
            if getattr(own, key) != Command.model_fields[key].get_default():
                yield f"{key}: belongs to prompt=, got it without; give prompt=FILE, or remove it"
    if own.ensemble:
        others = [Path(member).expanduser() for member in own.ensemble]
        if len({other.absolute() for other in others}) < 2:
            yield f"ensemble: must be two folders of runs or more, got {own.ensemble}; give ensemble=[runs/A,runs/B]"
        if run is not None:
            yield from check_members(run, others, "ensemble", shape=type(config.adapter).model_fields)
        yield from [] if own.prompt is not None else ensembles.check(config)
    if own.lm_eval:
        yield from harness.check(own.lm_eval, own.prompt, own.ensemble, ranks)


def _shots(own: Command) -> list[int]:
    return own.shots if isinstance(own.shots, list) else [own.shots]


def _names_a_base(argv: list[str]) -> bool:
    """Whether what is asked needs no run, and none is named."""
    keys = {word.partition("=")[0] for word in argv}
    return bool(keys & {"prompt", "lm_eval"}) and not keys & {"run", "ensemble"}


def evaluate(run: Path, config: Config, checkpoint: str | None, ranks: Ranks) -> dict[str, Any]:
    """Measures on the held-out data of `config`; writes `evaluation.json` and prints a table. Every rank calls it.

    Raises ConfigError where there is nothing trained yet, or nothing held out.
    """
    log.start(ranks.global_rank)

    from distft.runtime.group import Group
    from distft.runtime.stop import StopFlag
    from distft.session.held_out import held_out as hold_out
    from distft.session.held_out import read_held_out, write_files
    from distft.session.precompute import precompute
    from distft.session.replies import Samples
    from distft.session.session import set_up

    weights = find_weights(run, checkpoint)
    tokenizer, task, held_out, documents = read_held_out(config, facts_beside(weights))
    group = Group(ranks)
    log.to_folder(run, ranks.global_rank)
    facts, pad_id = held_out.facts, tokenizer.pad_token_id
    stage = set_up(
        config,
        group,
        task.architecture(facts),
        lambda loaded: task.module(loaded, facts),
        runs=[run],
        weights=[weights],
    )
    engine, module = stage.engine, stage.module
    precompute(module, engine, {"eval": documents}, held_out.folder, config, group, pad_id, StopFlag())
    rows = hold_out(documents, task, config, facts, ranks, pad_id)
    samples = Samples(engine, held_out.prompts, tokenizer, config.evaluation, run, group)

    with nullcontext() if config.adapter.traits.starts_as_base else module.without_adapter():
        base = _measure(engine, rows, group, samples)
    engine.load_trainable_state(stage.trained[0].read)
    after = _measure(engine, rows, group, samples)
    result = _result(config, weights, documents, base, after, samples)
    if ranks.is_main:
        aside = run / f".{RESULT}"
        aside.write_text(json.dumps(result, indent=2, ensure_ascii=False), encoding="utf-8")
        aside.replace(run / RESULT)
        write_files(after.scores, run)
        from rich.console import Console

        show(result, run / RESULT, Console(highlight=False, markup=False))
    group.barrier()
    group.leave()
    return result


def _result(
    config: Config, weights: Path, documents: "Corpus", base: Measured, after: Measured, samples: Any
) -> dict[str, Any]:
    return {
        "run": config.name,
        "weights": str(weights),
        "data": {
            "source": config.data.model_dump(mode="json")["eval"]
            or f"{config.data.eval_fraction:g} of the training data",
            "digest": documents.digest,
            "documents": documents.num_documents,
            "target_tokens": documents.num_targets,
        },
        "base": base.numbers,
        "trained": after.numbers,
        "samples": [
            {"prompt": chat[-2]["content"], "reference": chat[-1]["content"], "base": first, "trained": then}
            for chat, first, then in zip(samples.chats, base.replies, after.replies, strict=True)
        ],
        "time": time.time(),
    }


def _with_defaults(argv: list[str]) -> list[str]:
    """Other held-out data stands alone: nothing of it is cut off, and the training data is not read.

    An ensemble is of the first run's task, data and model.
    """
    given = [word.removeprefix("data.eval=") for word in argv if word.startswith("data.eval=")]
    whole = ["data.eval_fraction=0", "data.replay=null", "data.replay_share=0.1"]
    alone = [f"data.train={given[-1]}", *whole] if given and given[-1] != "null" else []
    members = [word.removeprefix("ensemble=").strip("[]").split(",") for word in argv if word.startswith("ensemble=")]
    first = [f"run={members[-1][0]}"] if members and not any(word.startswith("run=") for word in argv) else []
    return [*DEFAULTS, *first, *alone, *argv]


def _measure(engine: Any, rows: "HeldOut", group: Any, samples: Any) -> Measured:
    from distft.runtime.stop import StopFlag

    scores = rows.score(engine, group, StopFlag())
    assert scores is not None, "nobody sets this flag"
    return Measured(scores.numbers, samples.replies(), scores)


def show(result: dict[str, Any], file: Path, console: "Console") -> None:
    """The table for people."""
    from rich.table import Column, Table

    from distft.tracking.console import samples_table, visible
    from distft.tracking.seam import Sample

    base, trained, data = result["base"], result["trained"], result["data"]
    columns = [Column(name, justify="right") for name in ("base", "trained", "change")]
    table = Table("", *columns, box=None, title=f"{result['run']}: {data['documents']:,} held-out documents")
    for name in base:
        form = ",.2f" if name == "perplexity" else ".4f"
        change = f"{100 * (trained[name] / base[name] - 1):+.1f} %" if base[name] else "-"
        table.add_row(name, format(base[name], form), format(trained[name], form), change)
    console.print(table)
    if result["samples"]:
        console.print()
        replies = [Sample(s["prompt"], s["reference"], s["base"], s["trained"]) for s in result["samples"]]
        shown = samples_table(replies)
        shown.columns[1].header, shown.columns[2].header = "base", "trained"
        console.print(shown)
    console.print()
    for label, text in (
        ("weights", result["weights"]),
        ("data", f"{data['source']}, {data['target_tokens']:,} target tokens"),
        ("written", str(file)),
    ):
        console.print(visible(f"{label:<8}  {text}"), soft_wrap=True)
