"""Asked to stop, hung, or without progress: a job ends in a clear state, and is requeued only if that is meant."""

import contextlib
import json
import os
import signal
import time
from pathlib import Path

from distft.run.status import Status
from distft.runtime import slurm
from launch.cancel import cancel
from launch.status import row_of
from tests.resume import runs
from tests.slurm.real_cluster import ends, reached, story, until


def test_cancel_saves_and_keeps_the_job_from_being_requeued(cluster, words, tmp_path):
    job = cluster.launch(tmp_path / "run", words())
    reached(tmp_path / "run", 15)
    assert "saves and stops" in cancel(tmp_path / "run", now=False)
    ends(tmp_path / "run", job, "stopped")
    assert "not requeued: it was cancelled" in story(tmp_path / "run")
    assert row_of(tmp_path / "run").state == "stopped"
    again = cluster.launch(tmp_path / "run", words("steps=20"))
    assert f"job {again} is " in cancel(
        tmp_path / "run", now=True
    )  # killed, or taken out of the queue: it may still wait
    until(lambda: slurm.job_state(again) == "CANCELLED")


def test_a_rank_that_hangs_is_named_and_the_job_starts_again(cluster, words, straight, tmp_path):
    job = cluster.launch(tmp_path / "run", words("runtime.hang_after=8"))
    reached(tmp_path / "run", 15)
    for rank in cluster.ranks_on(2, tmp_path):
        os.kill(rank, signal.SIGSTOP)
    status = ends(tmp_path / "run", job, "finished")
    assert status.starts == 2
    told = (tmp_path / "run" / "logs" / "hang.txt").read_text()
    assert "rank 1 on n2 does not answer" in told and "1 of 2 ranks wait at" in told
    assert "most recent call first" in (tmp_path / "run" / "logs" / "hang-rank-00000.txt").read_text()
    assert status.bad_nodes == {"n2": 1}
    assert runs.adapter(tmp_path / "run") == straight


def test_a_node_that_hung_twice_is_left_out(cluster, words, tmp_path):
    (tmp_path / "run").mkdir(mode=0o700)
    Status(bad_nodes={"n1": 1}).write(tmp_path / "run")
    job = cluster.launch(tmp_path / "run", words("cluster.nodes=1", "cluster.tasks_per_node=2", "runtime.hang_after=8"))
    reached(tmp_path / "run", 12)
    os.kill(cluster.ranks_on(1, tmp_path)[-1], signal.SIGSTOP)
    ends(tmp_path / "run", job, "finished")
    assert Status.read(tmp_path / "run").bad_nodes == {"n1": 2}
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["host"] == "n2"
    assert "requeued without n1" in story(tmp_path / "run")


def test_a_run_without_progress_gives_up(cluster, words, tmp_path):
    job = cluster.launch(tmp_path / "run", words("cluster.max_restarts=1", "checkpoint.every=1000"))
    for start in (1, 2):
        until(lambda: Status.read(tmp_path / "run").starts == start, what=lambda: story(tmp_path / "run"))  # noqa: B023
        until(lambda: cluster.ranks_on(1, tmp_path))
        for rank in cluster.ranks_on(1, tmp_path):
            with contextlib.suppress(ProcessLookupError):  # srun ends what is left of a step when one dies
                os.kill(rank, signal.SIGKILL)
        until(lambda: slurm.job_state(job) != "RUNNING")
    until(
        lambda: slurm.job_state(job) not in ("PENDING", "RUNNING", "COMPLETING"), what=lambda: story(tmp_path / "run")
    )
    assert "it has made no step that was saved in 2 starts" in story(tmp_path / "run")
    assert row_of(tmp_path / "run").state == "failed"


def test_a_node_with_a_slow_rank_is_named_by_the_preflight_and_left_out(cluster, words, tmp_path):
    job = cluster.launch(
        tmp_path / "run", words("cluster.nodes=1", "cluster.tasks_per_node=2", "cluster.preflight=true")
    )
    until((tmp_path / "run" / "owner.json").exists, what=lambda: story(tmp_path / "run"))
    second = next(
        pid for pid in cluster.ranks_on(1, tmp_path) if b"SLURM_PROCID=1\0" in Path(f"/proc/{pid}/environ").read_bytes()
    )
    end = time.monotonic() + 100
    while Status.read(tmp_path / "run").bad_nodes == {}:  # the second rank has a fifth of its time
        assert time.monotonic() < end, story(tmp_path / "run")
        for number, seconds in ((signal.SIGSTOP, 0.08), (signal.SIGCONT, 0.02)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(second, number)
            time.sleep(seconds)
    assert Status.read(tmp_path / "run").bad_nodes == {"n1": 2}
    until(lambda: "requeued without n1" in story(tmp_path / "run"), what=lambda: story(tmp_path / "run"))
    assert "n1 (rank 1 multiplies at " in story(tmp_path / "run")
    cancel(tmp_path / "run", now=True)
    until(lambda: slurm.job_state(job) == "CANCELLED")
