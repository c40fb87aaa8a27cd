import math

import pytest
from tracked_rows import log_steps, train_row

from distft.tracking.metrics import MetricsFile
from distft.tracking.tensorboard import TensorboardMirror

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def scalars(run_dir, tag: str) -> list[tuple[int, float]]:
    events = accumulator.EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def started(info) -> TensorboardMirror:
    MetricsFile().start(info)
    mirror = TensorboardMirror()
    mirror.start(info)
    return mirror


def test_tensorboard_holds_each_step_once_after_a_kill_and_a_resume(info, summary, tmp_path):
    log_steps(started(info()), 1, 27)  # never closed
    mirror = started(info(first_step=20))
    log_steps(mirror, 21, 40)
    mirror.close(summary)
    assert scalars(tmp_path, "train/loss") == [(step, pytest.approx(1 + 1 / step)) for step in range(1, 41)]
    assert [step for step, _ in scalars(tmp_path, "eval/loss")] == [10, 20, 30, 40]


def test_tensorboard_switched_on_later_gets_the_earlier_steps(info, summary, tmp_path):
    file = MetricsFile()
    file.start(info())
    log_steps(file, 1, 20)
    mirror = started(info(first_step=20))
    mirror.log(train_row(21, loss=float("nan")))
    mirror.close(summary)
    held = scalars(tmp_path, "train/loss")
    assert [step for step, _ in held] == list(range(1, 22))
    assert math.isnan(held[-1][1])
