"""The product as an arm: `distft.train` itself, its loop held up between blocks of steps."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.measure import Turns
from distft.tracking.seam import Row, RunInfo, Summary, Tracker
from distft.train import command as train
from distft.train import loop
from distft.train.loop import Run

NO_EXTRAS = ["data.eval_fraction=0", "evaluation.samples=0", "checkpoint.every=1000000", "steps=1000000"]


class BetweenBlocks:
    """A tracker that passes everything on, and after every `steps` rows hands over to the other arm."""

    def __init__(self, tracker: Tracker, turns: Turns, steps: int):
        self.tracker, self.turns, self.steps = tracker, turns, steps
        self.rows: list[Row] = []

    def start(self, info: RunInfo) -> None:
        raise AssertionError("started before the loop")

    def log(self, row: Row) -> None:
        self.tracker.log(row)
        if row["split"] != "train":
            return
        self.rows.append(row)
        if len(self.rows) == self.steps:
            self.turns.done(summed(self.rows))
            self.rows = []
            self.turns.wait()

    def close(self, summary: Summary) -> None:
        self.tracker.close(summary)


def summed(rows: list[Row]) -> dict[str, Any]:
    """A block's result, from the rows of its steps."""
    return {
        "losses": [row["loss"] for row in rows],
        "grad_norms": [row["grad_norm"] for row in rows],
        "tokens": sum(row["tokens"] for row in rows),
        "targets": sum(row.get("target_tokens", 0) for row in rows),
    }


def run_loop(overrides: list[str], body: Callable[[Run], None]) -> None:
    """A run of `+exp=llama_lora` up to the point where its loop would begin; `body` takes over from there."""

    def instead(run: Run) -> bool:
        body(run)
        return False

    usual, loop.train = loop.train, instead
    try:
        with tempfile.TemporaryDirectory() as folder:
            train.main(["+exp=llama_lora", f"run_root={folder}", "engine=single", *NO_EXTRAS, *overrides])
    finally:
        loop.train = usual


def ours(turns: Turns, steps: int, overrides: list[str], adapter: Path | None = None) -> None:
    """Serves blocks of `steps` steps of the real loop. Leaves the adapter it starts from in `adapter`."""
    usual = loop.train

    def body(run: Run) -> None:
        if adapter is not None:
            save_tensors(dict(run.engine.trainable_state()), adapter)
        run.tracker = BetweenBlocks(run.tracker, turns, steps)
        turns.wait()
        usual(run)

    run_loop(overrides, body)


def save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Complete or not there: the other arm waits for it."""
    aside = path.with_suffix(".tmp")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside)
    aside.rename(path)
