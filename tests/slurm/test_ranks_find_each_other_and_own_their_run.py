"""Ranks meet whatever sits at their ports, and a run folder has one owner over all nodes."""

import json
import os
import signal
import subprocess
import sys

import pytest

from distft.errors import ConfigError
from distft.runtime import slurm
from distft.runtime.rendezvous import candidates
from tests.resume import runs
from tests.slurm.real_cluster import SCRIPT, ends, reached, run, until

LISTEN = """
import socket, sys
sockets = [socket.create_server(("", int(port))) for port in sys.argv[1:]]
print("listening", flush=True)
while True:
    sockets[0].accept()[0].sendall(b"slurm.0.0.0 1\\n")
"""


def test_two_nodes_of_two_ranks_lose_what_two_local_processes_do(cluster, words, commands, tiny, tmp_path):
    short = ["adapter.dropout=0", "steps=8"]
    job = cluster.launch(tmp_path / "run", words(*short, "cluster.tasks_per_node=2"))
    local = commands.run(*tiny(tmp_path / "local", "data.max_length=64", *short), world_size=2)
    assert local.code == 0, local.output
    ends(tmp_path / "run", job, "finished")
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["world_size"] == 4
    ours, theirs = (runs.rows(folder, "train") for folder in (tmp_path / "run", tmp_path / "local" / "run"))
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], rel=1e-5)
    assert len(list((tmp_path / "run" / "logs").glob("rank-*.log"))) == 4


def test_a_port_that_is_taken_and_two_jobs_on_one_node(cluster, words, tmp_path):
    one_node = ["cluster.nodes=1", "cluster.tasks_per_node=2", "steps=4"]
    first = int(cluster.launch(tmp_path / "run", words(*one_node, "steps=2")))
    taken = [str(candidates(f"slurm.{first + number}.0.0")[0]) for number in (1, 2)]
    command = [str(SCRIPT), "exec", "1", sys.executable, "-c", LISTEN, *taken]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == b"listening\n"
        jobs = {name: cluster.launch(tmp_path / name, words(*one_node, f"name={name}")) for name in ("x", "y")}
        assert [int(job) for job in jobs.values()] == [first + 1, first + 2]
        for name, job in jobs.items():
            ends(tmp_path / name, job, "finished")
            assert json.loads((tmp_path / name / "environment.json").read_text())["host"] == "n1"
    finally:
        os.killpg(other.pid, signal.SIGKILL)
    ends(tmp_path / "run", str(first), "finished")


def test_a_second_start_is_refused_by_the_owner_s_name_and_a_dead_owner_is_taken_over(
    cluster, words, commands, tiny, tmp_path
):
    job = cluster.launch(tmp_path / "run", words("steps=400"))
    reached(tmp_path / "run", 12)
    with pytest.raises(ConfigError, match=rf"belongs to job {job}, process \d+ on n[12], started"):
        cluster.launch(tmp_path / "run", words("steps=400"))
    here = tiny(tmp_path, "data.max_length=64", "steps=400", "checkpoint.every=10", "evaluation.every=50")
    refused = commands.run(*here)
    assert refused.code == 2 and f"belongs to job {job}, process" in refused.output
    cluster.call("crash", "1")
    cluster.call("crash", "2")
    until(lambda: slurm.job_state(job) not in ("RUNNING", "COMPLETING"))
    taken = commands.start(*[*here, "steps=40"])
    ended = taken.end()
    cluster.call("start", "1")
    cluster.call("start", "2")
    run("scancel", job)
    assert ended.code == 0, ended.output
    assert f"taken over from job {job}" in ended.output
