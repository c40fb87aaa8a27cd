"""Ranks read their places from srun's variables, and find each other whatever sits at their ports."""

import socket
import threading
from contextlib import closing

import pytest

from distft.errors import ConfigError, DistftError
from distft.runtime.env import Ranks, read_job, read_ranks
from distft.runtime.rendezvous import candidates, meet

SRUN = {
    "SLURM_JOB_ID": "77",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_RESTART_COUNT": "2",
    "SLURMD_NODENAME": "gpu04",
}


def rank(number: int, meeting: str) -> Ranks:
    return Ranks(number, 2, number, 2, "127.0.0.1", meeting=meeting, launcher="slurm")


def test_srun_s_variables_give_place_node_and_meeting():
    ranks = read_ranks(SRUN)
    assert (ranks.global_rank, ranks.world_size, ranks.local_rank, ranks.local_world_size) == (3, 4, 1, 2)
    assert (ranks.master_addr, ranks.node, ranks.job.id, ranks.job.restarts) == ("gpu03", "gpu04", "77", 2)
    assert ranks.meeting != read_ranks(SRUN | {"SLURM_RESTART_COUNT": "3"}).meeting, "a requeue is another start"
    assert read_job(SRUN | {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "7"}).id == "70_7"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLURM_STEP_NODELIST", "n1$(touch pwned)"),
        ("SLURM_STEP_NODELIST", "-oProxyCommand=sh"),
        ("SLURM_STEP_NODELIST", "n1\nn2"),
        ("SLURM_PROCID", "1;id"),
        ("SLURM_JOB_ID", "٣"),
        ("SLURM_ARRAY_JOB_ID", "../../etc"),
    ],
)
def test_crafted_variables_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=name):
        read_ranks(SRUN | {name: value})


def test_a_foreign_answer_and_a_port_that_is_taken_lead_nobody_astray():
    meeting = "slurm.4711.0.0"
    foreign = socket.create_server(("", candidates(meeting)[0]))
    stop = threading.Event()

    def answer() -> None:
        foreign.settimeout(0.2)
        while not stop.is_set():
            try:
                asking, _ = foreign.accept()
            except OSError:
                continue
            with asking:
                asking.sendall(b"slurm.4710.0.0 1\n")

    threading.Thread(target=answer, daemon=True).start()
    got = []

    def other() -> None:
        with meet(rank(1, meeting), timeout_s=20) as store:
            got.append(store.get("hello"))

    with closing(foreign), meet(rank(0, meeting), timeout_s=20) as store:
        asking = threading.Thread(target=other)
        asking.start()
        store.set("hello", "rank 1")
        asking.join(20)
    stop.set()
    assert got == [b"rank 1"]


def test_a_rank_that_is_alone_says_whom_it_misses():
    with pytest.raises(DistftError, match="must find rank 0"), meet(rank(1, "nobody"), timeout_s=0.5):
        pass
