"""A run folder has one owner; a dead one is recognised; starts without progress are counted."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from distft.errors import DistftError
from distft.run import owner, status
from distft.run.owner import Card, Owner
from distft.runtime.env import Job
from distft.tracking import status_file
from distft.tracking.seam import RunInfo

ELSEWHERE = {"host": "n9", "pid": 5, "job": None, "since": "yesterday", "token": "t", "process": "boot2 pid:[2] 5 99"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(owner, "FENCE_S", 0.1)


def leave(tmp_path, card, age_s=0.0):
    (tmp_path / owner.FILE).write_text(json.dumps(card))
    os.utime(tmp_path / owner.FILE, (time.time() - age_s,) * 2)


def start_owner(tmp_path, job):
    """Another process that owns the folder until it is killed, or taken over from."""
    code = (
        "import pathlib, time; from distft.run.owner import Owner; from distft.runtime.env import Job; "
        f"Owner(pathlib.Path({str(tmp_path)!r}), {f'Job({job!r})' if job else None}).claim(); "
        "print('mine', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"mine\n"
    return process


def test_a_folder_that_was_released_is_free_at_once(tmp_path):
    first = Owner(tmp_path, None)
    assert first.claim() is None and first.is_mine()
    first.release()
    assert Owner(tmp_path, None).claim() is None


def test_a_process_of_this_machine_is_alive_as_long_as_it_runs(tmp_path):
    old = start_owner(tmp_path, "12")
    leave(tmp_path, asdict(Card.read(tmp_path)) | {"process": ELSEWHERE["process"]})  # on a node that was cut off
    assert "job 12" in Owner(tmp_path, Job("12", restarts=1)).claim()
    assert old.wait(timeout=20) == 1
    assert b"another owner" in old.stdout.read()


def test_restarts_without_a_saved_step_are_counted_and_bounded(tmp_path):
    def start(restarts: int, newest_step: int) -> int:
        status.begin_start(tmp_path, Job("1", restarts), newest_step=newest_step, max_restarts=2)
        return status.Status.read(tmp_path).starts_without_progress

    assert [start(0, 0), start(1, 0), start(2, 10), start(3, 10), start(4, 10)] == [0, 1, 0, 1, 2]
    with pytest.raises(DistftError, match=r"started 4 times without a step that was saved \(allowed 2\)"):
        start(5, 10)
    assert status.Status.read(tmp_path).state == "gave_up"
    assert start(0, 10) == 0, "a start by hand begins anew"


def test_a_hang_is_not_overwritten_by_what_it_leads_to(tmp_path):
    status.blame(tmp_path, "hung", "rank 1 stands", ["n2"])
    status.end(tmp_path, "failed", "connection lost")
    left = status.Status.read(tmp_path)
    assert (left.state, left.reason, left.bad_nodes) == ("hung", "rank 1 stands", {"n2": 1})


def test_a_disk_that_takes_a_second_for_the_status_costs_two_percent_of_the_time(tmp_path, monkeypatch):
    now, written = [0.0], []

    def write(self: status.Status, run_dir: Path) -> None:
        now[0] += 1.0
        written.append(self.step)

    monkeypatch.setattr(status_file.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(status.Status, "write", write)
    observer = status_file.StatusFile()
    observer.start(RunInfo("a", tmp_path, "id", [], 9999))
    for step in range(1, 2001):
        now[0] += 0.1
        observer.log({"step": step, "split": "train", "loss": 1.0, "tokens_per_second": 1.0})
    assert written == [0, 500, 1001, 1502], "50 s after the end of the last one"
