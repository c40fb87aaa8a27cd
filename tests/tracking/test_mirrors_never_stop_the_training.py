import json
import logging
import subprocess
import sys

import pytest
from tracked_rows import eval_row, log_steps

from distft.config import schema
from distft.errors import DistftError
from distft.tracking.build import build
from distft.tracking.fan_out import FanOut, NullTracker
from distft.tracking.metrics import MetricsFile


class Recorder:
    def __init__(self):
        self.calls = []

    def start(self, info):
        self.calls.append("start")

    def log(self, row):
        self.calls.append(row["step"])

    def close(self, summary):
        self.calls.append("close")


class Failing(Recorder):
    """A mirror whose `verb` raises."""

    def __init__(self, verb: str):
        super().__init__()

        def fail(argument):
            self.calls.append(verb)
            raise ConnectionError("the server is down")

        setattr(self, verb, fail)


@pytest.mark.parametrize("verb", ["start", "log", "close"])
def test_failing_mirror_is_named_once_and_left_out(verb, info, summary, tmp_path, caplog):
    failing, healthy = Failing(verb), Recorder()
    tracker = FanOut(MetricsFile(), {"failing": failing, "healthy": healthy})
    with caplog.at_level(logging.WARNING):
        tracker.start(info())
        log_steps(tracker, 1, 3)
        tracker.close(summary)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    assert healthy.calls == ["start", 1, 2, 3, "close"]
    assert failing.calls.count(verb) == 1 and failing.calls[-1] == verb
    (warning,) = caplog.records
    assert "failing is switched off" in warning.getMessage() and "the server is down" in warning.getMessage()


def test_failing_metrics_file_stops_the_training(info, tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(DistftError, match=r"metrics\.jsonl: must be writable"):
        FanOut(MetricsFile(), {}).start(info())


def test_row_gets_a_time_unless_it_has_one(info, tmp_path):
    tracker = FanOut(MetricsFile(), {})
    tracker.start(info())
    tracker.log({"step": 1, "split": "train", "loss": 1.0})
    tracker.log(eval_row(1))
    first, second = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first["time"] > 1.7e9 and second["time"] == 1.7e9 + 1


def test_other_ranks_write_nothing(info, summary, tmp_path, capsys):
    tracker = build(schema.Wandb(name="wandb"), global_rank=1)
    assert isinstance(tracker, NullTracker)
    tracker.start(info())
    log_steps(tracker, 1, 10)
    tracker.close(summary)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_first_rank_without_tracking_writes_metrics_and_report(info, summary, tmp_path, capsys):
    tracker = build(schema.NoTracking(name="none"), global_rank=0)
    tracker.start(info())
    log_steps(tracker, 1, 10)
    tracker.close(summary)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "report.html", "status.json"]
    assert "a-run: finished" in capsys.readouterr().out


def test_tracking_loads_neither_torch_nor_a_tracker_it_was_not_asked_for():
    code = (
        "import sys; from distft.config import schema; from distft.tracking.build import build\n"
        "import distft.runtime.log, distft.tracking.wandb, distft.tracking.tensorboard\n"
        "build(schema.NoTracking(name='none'), global_rank=0)\n"
        "print([name for name in ('torch', 'wandb', 'tensorboard', 'plotly') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
