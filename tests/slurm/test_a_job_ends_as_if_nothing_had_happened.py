"""What clusters do to jobs, done to a real one: the adapter is that of the uninterrupted run, bit for bit."""

import os
import signal
import time

import pytest

from distft.run.status import Status
from distft.runtime import slurm
from tests.resume import runs
from tests.slurm.real_cluster import ends, reached, run, until


@pytest.fixture
def finishes_alike(cluster, words, straight, tmp_path):
    """Checks that a job ends, with at least so many restarts, in the bits of the straight run."""

    def check(job: str, restarts: int) -> Status:
        status = ends(tmp_path / "run", job, "finished")
        assert status.starts >= restarts + 1
        assert runs.adapter(tmp_path / "run") == straight
        steps = [row["step"] for row in runs.rows(tmp_path / "run", "train")]
        assert steps == list(range(1, 81)), "each step stands once"
        return status

    return check


def test_two_requeues_by_hand_and_the_controller_s_restart(cluster, words, finishes_alike, tmp_path):
    job = cluster.launch(tmp_path / "run", words("tracking=wandb"))
    reached(tmp_path / "run", 15)
    run("scontrol", "requeue", job)
    reached(tmp_path / "run", 35)
    cluster.call("restart-slurmctld")
    run("scontrol", "requeue", job)
    finishes_alike(job, restarts=2)
    offline = list((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len({folder.name.rpartition("-")[2] for folder in offline}) == 1, "one W&B run over all restarts"


def test_preemption_by_a_higher_partition_and_a_rank_that_is_shot(cluster, words, finishes_alike, tmp_path):
    job = cluster.launch(tmp_path / "run", words("cluster.partition=low"))
    reached(tmp_path / "run", 15)
    run("srun", "--partition=high", "--nodes=2", "--exclusive", "--time=1", "true")
    reached(tmp_path / "run", 35)
    began = time.monotonic()
    for rank in cluster.ranks_on(2, tmp_path):
        os.kill(rank, signal.SIGKILL)
    until(lambda: slurm.job_state(job) != "RUNNING")
    assert time.monotonic() - began < 30, "collectives time out after half an hour"
    finishes_alike(job, restarts=2)


def test_power_cuts_amid_a_step_and_amid_a_save(cluster, words, finishes_alike, tmp_path):
    job = cluster.launch(tmp_path / "run", words())
    for node, step in (("1", 15), ("2", 45)):
        reached(tmp_path / "run", step)
        if node == "2":
            until(lambda: list((tmp_path / "run" / "checkpoints").glob(".step-*")))
        cluster.call("crash", node)
        until(lambda: slurm.job_state(job) != "RUNNING")
        cluster.call("start", node)
    finishes_alike(job, restarts=2)


def test_a_daemon_that_is_shot_while_its_rank_runs_on(cluster, words, tmp_path):
    job = cluster.launch(tmp_path / "run", words("steps=300"))
    reached(tmp_path / "run", 15)
    cluster.call("kill-slurmd", "1")
    until(lambda: slurm.job_state(job) != "RUNNING")
    cluster.call("start-slurmd", "1")
    ends(tmp_path / "run", job, "finished")
    steps = [row["step"] for row in runs.rows(tmp_path / "run", "train")]
    assert steps == list(range(1, 301)), "each step stands once, though two rank 0s were alive"


def test_a_node_that_is_cut_off(cluster, words, finishes_alike, tmp_path):
    job = cluster.launch(tmp_path / "run", words())
    reached(tmp_path / "run", 15)
    cluster.call("link", "2", "down")
    until(lambda: slurm.job_state(job) != "RUNNING")
    cluster.call("link", "2", "up")
    finishes_alike(job, restarts=1)


def test_the_time_limit(cluster, words, slow_steps, finishes_alike, tmp_path):
    job = cluster.launch(tmp_path / "run", words("cluster.time_min=1", "cluster.signal_s=10"))
    finishes_alike(job, restarts=1)


def test_scancel_saves_and_is_final_and_one_node_goes_on_in_place_of_two(cluster, words, tmp_path):
    job = cluster.launch(tmp_path / "run", words())
    reached(tmp_path / "run", 15)
    run("scancel", job)
    status = ends(tmp_path / "run", job, "stopped")
    last = len(runs.rows(tmp_path / "run", "train"))
    assert runs.steps(tmp_path / "run")[-1] == last == status.step, "the step in hand was finished and saved"
    assert slurm.job_state(job) == "CANCELLED"
    job = cluster.launch(tmp_path / "run", words("cluster.nodes=1"))
    ends(tmp_path / "run", job, "finished")
    assert [row["step"] for row in runs.rows(tmp_path / "run", "train")] == list(range(1, 81))
