"""Rows of an imagined run."""

import math

from distft.tracking.seam import Row


def train_row(step: int, **others: float) -> Row:
    numbers = {"loss": 1 + 1 / step, "grad_norm": 0.5, "lr": 1e-4, "tokens": 512, "target_tokens": 200}
    speed = {"tokens_per_second": 1000.0, "step_seconds": 0.5, "peak_memory_bytes": 10**9, "time": 1.7e9 + step}
    return {"step": step, "split": "train", **numbers, **speed, **others}


def eval_row(step: int, loss: float | None = None) -> Row:
    loss = 1.2 + math.exp(-step / 10) if loss is None else loss
    return {"step": step, "split": "eval", "loss": loss, "time": 1.7e9 + step}


def log_steps(tracker, first: int, last: int) -> None:
    """Log the training steps `first`..`last`, and an evaluation after every tenth."""
    for step in range(first, last + 1):
        tracker.log(train_row(step))
        if step % 10 == 0:
            tracker.log(eval_row(step))
