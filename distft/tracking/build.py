"""The tracker of a run: metrics.jsonl, and its mirrors: console, status.json, report, W&B or TensorBoard."""

from typing import assert_never

from distft.config import schema
from distft.tracking.fan_out import FanOut, NullTracker
from distft.tracking.seam import Tracker


def build(tracking: schema.AnyTracking, *, global_rank: int) -> Tracker:
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
    elif not isinstance(tracking, schema.NoTracking):
        assert_never(tracking)  # mypy names a tracker that is left out here
    mirrors["report.html"] = Report()
    return FanOut(MetricsFile(), mirrors)
