"""Tracking: one seam of three verbs, and six observers of the same rows.

`metrics.jsonl` is the truth about a run and must be written; console, status.json, report, W&B and TensorBoard are
mirrors of it, and a mirror that fails never stops the training.
"""

import logging
import time

from distft.config import schema
from distft.tracking.seam import Lines, Row, RunInfo, Sample, Summary, Tracker

__all__ = ["Lines", "NullTracker", "Row", "RunInfo", "Sample", "Summary", "Tracker", "build"]

logger = logging.getLogger(__name__)


class NullTracker:
    """Observes nothing: the tracker of every rank but the first."""

    def start(self, info: RunInfo) -> None:
        pass

    def log(self, row: Row) -> None:
        pass

    def close(self, summary: Summary) -> None:
        pass


class FanOut:
    """Hands every call to `truth`, whose errors are raised, then to each of `mirrors`, whose errors are survived."""

    def __init__(self, truth: Tracker, mirrors: dict[str, Tracker]):
        self.truth = truth
        self.mirrors = dict(mirrors)

    def start(self, info: RunInfo) -> None:
        self.truth.start(info)
        self._mirror("start", info)

    def log(self, row: Row) -> None:
        """Note one row; `time` is stamped here unless the row has one."""
        row = row if "time" in row else {**row, "time": time.time()}
        self.truth.log(row)
        self._mirror("log", row)

    def close(self, summary: Summary) -> None:
        self.truth.close(summary)
        self._mirror("close", summary)

    def _mirror(self, verb: str, argument: RunInfo | Row | Summary) -> None:
        for name, mirror in list(self.mirrors.items()):
            try:
                getattr(mirror, verb)(argument)
            except Exception as error:  # whatever a third-party client raises: the run outlives its mirrors
                del self.mirrors[name]
                reason = f"{type(error).__name__}: {error}".partition("\n")[0]
                logger.warning("%s is switched off, the run goes on without it (%s)", name, reason)
                logger.debug("%s failed in %s", name, verb, exc_info=True)


def build(tracking: schema.NoTracking | schema.Wandb | schema.Tensorboard, *, global_rank: int) -> Tracker:
    """The tracker of this rank: a fan-out on rank 0, a null object on all others."""
    if global_rank != 0:
        return NullTracker()
    from distft.tracking.console import ConsoleTracker
    from distft.tracking.metrics import MetricsFile
    from distft.tracking.report import Report
    from distft.tracking.status_file import StatusFile

    mirrors: dict[str, Tracker] = {"console": ConsoleTracker(), "status.json": StatusFile()}
    if isinstance(tracking, schema.Wandb):
        from distft.tracking.wandb import WandbMirror

        mirrors["wandb"] = WandbMirror(tracking)
    elif isinstance(tracking, schema.Tensorboard):
        from distft.tracking.tensorboard import TensorboardMirror

        mirrors["tensorboard"] = TensorboardMirror()
    mirrors["report.html"] = Report()
    return FanOut(MetricsFile(), mirrors)
