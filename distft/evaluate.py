"""python -m distft.evaluate: loss, metrics and replies of a run's base and of what it trained, side by side."""

import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distft.cli import run_command
from distft.config.check import check
from distft.config.compose import load_run
from distft.config.schema import Config, Section
from distft.errors import ConfigError
from distft.runtime import log
from distft.runtime.env import Ranks, read_ranks
from distft.trained import check_same_base, check_same_model, facts_beside, find_weights, open_weights

if TYPE_CHECKING:
    from rich.console import Console

    from distft.evaluation import HeldOut
    from distft.task.base import Scores

RESULT = "evaluation.json"
# What a run needed for training and an evaluation does not; a run of 64 ranks is evaluated on one all the same.
DEFAULTS = ["engine=auto", "optim=sgd", "tracking=none", "resume=auto"]


class Evaluate(Section):
    checkpoint: str | None = None
    """A step or a checkpoint's folder; null: the run's `adapter/`, or its newest checkpoint while it trains."""


class Command(Section):
    evaluate: Evaluate = Evaluate()


@dataclass(frozen=True)
class Measured:
    """One column: held-out loss, metrics, and replies."""

    numbers: dict[str, float]
    replies: list[str]
    scores: "Scores"


def main(argv: list[str]) -> None:
    ranks = read_ranks()
    run, config, own = load_run(_with_defaults(argv), Command, program="distft.evaluate", here=True)
    problems = check({"engine": config.engine}, world_size=ranks.world_size, here=False) + check_same_model(run, config)
    if not os.access(run, os.W_OK):
        problems.append(f"run: must be a folder that can be written, got {run}; copy it to one that can")
    if problems:
        raise ConfigError(problems)
    evaluate(run, config, own.evaluate.checkpoint, ranks)


def evaluate(run: Path, config: Config, checkpoint: str | None, ranks: Ranks) -> dict[str, Any]:
    """Measures on the held-out data of `config`; writes `evaluation.json` and prints a table. Every rank calls it.

    Raises ConfigError where there is nothing trained yet, or nothing held out.
    """
    log.start(ranks.global_rank)

    from distft.data.prepare import prepare
    from distft.engine import base as engines
    from distft.evaluation import held_out as hold_out
    from distft.evaluation import write_files
    from distft.model import load as model
    from distft.model.tokenizer import load_tokenizer
    from distft.rehearsal import rehearse
    from distft.runtime.group import Group
    from distft.runtime.stop import StopFlag
    from distft.samples import Samples
    from distft.task import base as tasks

    weights = find_weights(run, checkpoint)
    model.check(config.model, config.data.max_length)
    tokenizer = load_tokenizer(config.model, config.data.chat_template)
    task, facts = tasks.build(config.task), facts_beside(weights)
    held_out = prepare(config.data, task.reader(tokenizer, config.data, facts))
    if held_out.eval is None:
        raise ConfigError("data.eval: must be set where the run held nothing out; give data.eval=my.jsonl")

    group = Group(ranks)
    log.to_folder(run, ranks.global_rank)
    engine = engines.build(config, group, model.compute_dtype(config.model, group.device))
    loaded = model.load(
        config.model,
        config.adapter,
        seed=config.seed,
        device=group.device,
        shard=engine.shard,
        architecture=task.architecture(held_out.facts),
    )
    check_same_base(run, loaded.identity)
    module = task.module(loaded, held_out.facts)
    trained = open_weights(weights, module.weights_file, module.trainable())
    engine.start(module)
    sides = {"eval": held_out.eval}
    rehearse(module, engine, sides, held_out.folder, config, group, tokenizer.pad_token_id, StopFlag())
    rows = hold_out(held_out.eval, task, config, held_out.facts, ranks, tokenizer.pad_token_id)
    samples = Samples(engine, held_out.prompts, tokenizer, config.evaluation, run, group)

    # As it starts, every adapter is the base: B = 0, or what was taken from the base is in the adapter (PiSSA).
    # Switched off, the latter would be a base with a part missing.
    base = _measure(config, engine, rows, group, samples)
    engine.load_trainable_state(trained.read)
    after = _measure(config, engine, rows, group, samples)
    result = {
        "run": config.name,
        "weights": str(weights),
        "data": {
            "source": config.data.model_dump(mode="json")["eval"]
            or f"{config.data.eval_fraction:g} of the training data",
            "digest": held_out.eval.digest,
            "documents": held_out.eval.num_documents,
            "target_tokens": held_out.eval.num_targets,
        },
        "base": base.numbers,
        "trained": after.numbers,
        "samples": [
            {"prompt": chat[-2]["content"], "reference": chat[-1]["content"], "base": first, "trained": then}
            for chat, first, then in zip(samples.chats, base.replies, after.replies, strict=True)
        ],
        "time": time.time(),
    }
    if ranks.is_main:
        aside = run / f".{RESULT}"
        aside.write_text(json.dumps(result, indent=2, ensure_ascii=False))
        aside.replace(run / RESULT)
        write_files(after.scores, run)
        from rich.console import Console

        show(result, run / RESULT, Console(highlight=False, markup=False))
    group.barrier()
    group.leave()
    return result


def _with_defaults(argv: list[str]) -> list[str]:
    """Other held-out data stands alone: nothing of it is cut off, and the training data is not read."""
    given = [word.removeprefix("data.eval=") for word in argv if word.startswith("data.eval=")]
    alone = [f"data.train={given[-1]}", "data.eval_fraction=0"] if given and given[-1] != "null" else []
    return [*DEFAULTS, *alone, *argv]


def _measure(config: Config, engine: Any, rows: "HeldOut", group: Any, samples: Any) -> Measured:
    from distft.runtime.stop import StopFlag

    scores = rows.score(engine, group, StopFlag())
    assert scores is not None, "nobody sets this flag"
    perplexity = {"perplexity": math.exp(min(scores.numbers["loss"], 700.0))} if config.task.TOKEN_LOSS else {}
    return Measured({**scores.numbers, **perplexity}, samples.replies(), scores)


def show(result: dict[str, Any], file: Path, console: "Console") -> None:
    """The table for people."""
    from rich.table import Column, Table

    from distft.tracking.base import Sample
    from distft.tracking.console import samples_table, visible

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


if __name__ == "__main__":
    run_command(main)
