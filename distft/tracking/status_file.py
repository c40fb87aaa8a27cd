"""status.json as an observer of the run's rows."""

import contextlib
import time
from collections import deque

from distft.run.status import Status
from distft.tracking import metrics
from distft.tracking.seam import Row, RunInfo, Summary

SECONDS = 2.0
"""Least time between two writes."""
SHARE_OF_TIME = 0.02
"""Most of the run's time that may go into writing: fsync waits for what a checkpoint's thread writes to the disk."""


class StatusFile:
    """Keeps `<run>/status.json` up to date."""

    def start(self, info: RunInfo) -> None:
        self._run_dir, self._num_steps = info.run_dir, info.num_steps
        self._recent: deque[tuple[int, float]] = deque([(info.first_step, time.monotonic())], maxlen=50)
        self._status = Status.read(info.run_dir)
        self._status.state, self._status.step, self._status.num_steps = "running", info.first_step, info.num_steps
        self._status.world_size = info.world_size
        losses = [row["loss"] for row in metrics.read(info.run_dir / metrics.FILE) if row["split"] == "eval"]
        self._status.eval_loss = min((loss for loss in losses if loss is not None), default=None)
        self._write()

    def log(self, row: Row) -> None:
        if row["split"] == "eval":
            known = self._status.eval_loss
            self._status.eval_loss = row["loss"] if known is None else min(known, row["loss"])
        else:
            (step, began), now = self._recent[0], time.monotonic()
            self._recent.append((row["step"], now))
            self._status.step, self._status.loss = row["step"], row["loss"]
            self._status.tokens_per_second = row["tokens_per_second"]
            self._status.seconds_left = (self._num_steps - row["step"]) * (now - began) / max(1, row["step"] - step)
        if time.monotonic() >= self._next_write:
            self._write()

    def close(self, summary: Summary) -> None:
        self._write()  # how it ended is the run folder's to note: a run may end without a tracker

    def _write(self) -> None:
        begin = time.monotonic()
        with contextlib.suppress(OSError):  # a disk that is full now may not be at the next write
            self._status.write(self._run_dir)
        end = time.monotonic()
        self._next_write = end + max(SECONDS, (end - begin) / SHARE_OF_TIME)
