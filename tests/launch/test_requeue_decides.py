"""What a batch script does once its ranks have ended, by exit code, status and what Slurm says."""

import json

import pytest

from distft.config.reading.compose import load
from distft.config.reading.resolved import to_yaml
from distft.run.status import Status
from distft.runtime import slurm
from launch import cancel as cancelling
from launch import requeue
from launch.record import CANCEL
from launch.status import row_of


@pytest.fixture(scope="module")
def config():
    words = ["+exp=llama_lora", "model=tiny", "cluster=slurm", "cluster.max_restarts=2", "cluster.exclude=n9"]
    return load(words, program="launch", here=False)


@pytest.mark.parametrize(
    ("code", "status", "state", "cancelled", "refusal"),
    [
        (75, Status("stopped"), "RUNNING", False, None),
        (137, Status("failed"), "RUNNING", False, None),
        (139, Status("running"), "RUNNING", False, None),
        (1, Status("hung"), "RUNNING", False, None),
        (1, Status("unfit"), "RUNNING", False, None),
        (1, Status("failed", reason="loss is NaN"), "RUNNING", False, "loss is NaN"),
        (2, Status("failed"), "RUNNING", False, "it failed"),
        (75, Status("stopped"), "RUNNING", True, "it was cancelled"),
        (75, Status("stopped"), "COMPLETING", False, "Slurm has it as COMPLETING"),
        (75, Status("stopped"), "CANCELLED", False, "Slurm has it as CANCELLED"),
        (137, Status("failed", starts_without_progress=2), "RUNNING", False, "no step that was saved in 3 starts"),
        (1, Status("gave_up", reason="started 4 times"), "RUNNING", False, "started 4 times"),
    ],
)
def test_only_what_can_go_on_is_requeued_and_only_if_nobody_else_does(config, code, status, state, cancelled, refusal):
    told = requeue.why_not(code, status, state, config, cancelled=cancelled)
    assert told is None if refusal is None else refusal in told


def test_nodes_that_failed_twice_are_left_out_beside_those_of_the_config(config, monkeypatch):
    assert requeue.excluded(config, Status(bad_nodes={"n1": 1})) == []
    exclude = requeue.excluded(config, Status(bad_nodes={"n1": 2, "n2": 1, "n3": 3}))
    assert exclude == ["n9", "n1", "n3"]
    asked = []
    monkeypatch.setattr(slurm, "ask", lambda *command: asked.append(command) or "")
    assert requeue.requeue("12_3", exclude) == "requeued without n9,n1,n3"
    assert asked == [("scontrol", "requeue", "12_3"), ("scontrol", "update", "JobId=12_3", "ExcNodeList=n9,n1,n3")]


def test_a_rank_that_was_killed_before_it_could_say_so_is_noted(config, tmp_path, monkeypatch, capsys):
    config = config.model_copy(update={"run_root": str(tmp_path)})
    (tmp_path / "config-0.yaml").write_text(to_yaml(config))
    (tmp_path / config.name).mkdir()
    Status("running").write(tmp_path / config.name)
    ended = []
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setattr(slurm, "ask", lambda *command: "RUNNING")
    monkeypatch.setattr(requeue, "leave", ended.append)
    requeue.main(["137", str(tmp_path / "config-0.yaml")])
    assert ended == [137] and "ended with exit code 137: requeued" in capsys.readouterr().out
    assert Status.read(tmp_path / config.name).reason == "its ranks ended with exit code 137"


def test_a_run_that_nobody_runs_any_more_is_told_as_lost_and_cancelling_it_does_nothing(tmp_path, monkeypatch):
    Status("running", step=5, num_steps=9, job="12").write(tmp_path)
    card = {"host": "n9", "pid": 5, "job": "12", "since": "yesterday", "token": "t", "process": "boot2 pid:[2] 5 99"}
    (tmp_path / "owner.json").write_text(json.dumps(card | {"released": True}))
    monkeypatch.setattr(slurm, "ask", lambda *command: None)
    row = row_of(tmp_path)
    assert (row.state, row.step, row.steps) == ("lost", 5, 9) and "process 5 on n9" in row.why
    assert cancelling.cancel(tmp_path, now=False) == "nothing of it runs"


def test_a_job_that_waits_is_taken_out_of_the_queue_and_one_that_runs_is_asked_to_save(tmp_path, monkeypatch):
    Status("stopped", job="12").write(tmp_path)
    card = {"host": "n9", "pid": 5, "job": "12", "since": "yesterday", "token": "t", "process": "boot2 pid:[2] 5 99"}
    (tmp_path / "owner.json").write_text(json.dumps(card))
    asked = []
    for state in ("PENDING", "RUNNING"):
        monkeypatch.setattr(slurm, "ask", lambda *command: asked.append(command[:-1]) or state)  # noqa: B023
        assert "12" in cancelling.cancel(tmp_path, now=False)
    assert [command for command in asked if command[0] == "scancel"] == [("scancel",), ("scancel", "--signal=TERM")]
    assert (tmp_path / CANCEL).exists()
