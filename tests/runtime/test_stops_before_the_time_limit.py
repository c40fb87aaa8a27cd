"""A run stops in time by its own clock, though no signal comes."""

import time

import pytest

from distft.errors import Stopped
from distft.runtime import slurm
from distft.runtime.stop import StopFlag
from tests.resume import runs


def test_the_flag_is_up_when_what_is_left_is_what_is_needed():
    stop = StopFlag(ends_at=time.time() + 60)
    assert not stop.is_set
    stop.reserve_s = 61
    assert stop.reason == "the job's time limit"
    with pytest.raises(Stopped, match="time limit before the first step"):
        stop.raise_if_set()


@pytest.mark.parametrize(
    ("env", "printed", "ends_at"),
    [
        ({"SLURM_JOB_END_TIME": "1700000000"}, "2001-01-01T00:00:00", 1700000000.0),
        ({}, "2026-01-02T03:04:05", time.mktime((2026, 1, 2, 3, 4, 5, 0, 0, -1))),
        ({}, "N/A", None),
        ({}, None, None),
    ],
)
def test_the_limit_is_told_by_the_environment_or_by_squeue(monkeypatch, env, printed, ends_at):
    monkeypatch.setattr(slurm, "ask", lambda *command: printed)
    assert slurm.job_ends_at("7", env) == ends_at


def limit(global_rank: int, seconds: float) -> None:
    """Hook: the process is in a Slurm job that ends soon."""
    import os

    os.environ.update(SLURM_JOB_ID="7", SLURM_JOB_END_TIME=str(int(time.time() + seconds)))


def test_a_run_saves_and_stops_and_the_next_goes_on(commands, tiny, tmp_path):
    words = tiny(tmp_path, "steps=5000", "optim.schedule=constant")
    stopped = commands.run(*words, hook=(limit, 16))
    assert stopped.code == 75, stopped.output
    assert "stopped by the job's time limit" in stopped.output
    done = max(runs.steps(tmp_path / "run"))
    assert done == len(runs.rows(tmp_path / "run", "train")) > 0
    again = commands.run(*tiny(tmp_path, f"steps={done + 1}", "optim.schedule=constant"))
    assert again.code == 0 and f"from step-{done:08d}" in again.output, again.output
