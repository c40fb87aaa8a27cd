"""Run folders, checkpoints and submitted jobs that earlier code wrote (`tests/fixtures/earlier/make.py` says how)."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.fixtures.earlier import make
from tests.resume import hooks, runs

EARLIER = Path(make.__file__).parent
NEARLY = {"rel": 1e-4, "abs": 1e-6}
"""The fixture's processor may add floats in another order than this one. A lost optimizer state shows in 1e-2."""
LOCAL_JOB = {"JOB_ID": "1", "NTASKS": "1", "JOB_NUM_NODES": "1", "NODEID": "0", "GLOBALID": "0", "LOCALID": "0"}


@pytest.fixture
def here(tmp_path):
    """A copy of the fixture; its paths are relative to it."""
    shutil.copytree(EARLIER, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def run(commands, here):
    """`run(program, *words)` in the copy: what it printed, once it has ended well."""

    def run(program, *words, env=None):
        ended = commands.run(*words, program=program, hook=(hooks.in_folder, str(here), env))
        assert ended.code == 0, ended.output
        return ended.output

    return run


def assert_went_on(here, name):
    """To the rows and the adapter of the run that was never left to later code."""
    found, expected = here / name, EARLIER / "expected" / name
    rows = runs.rows(found)
    assert [row["step"] for row in rows if row["split"] == "train"] == list(range(1, 9))
    wanted = [json.loads(line) for line in (expected / "metrics.jsonl").read_text().splitlines()]
    for row, want in zip(rows, wanted, strict=True):
        assert {key: want[key] for key in ("step", "split")} == {key: row.pop(key) for key in ("step", "split")}
        assert row == pytest.approx({key: want[key] for key in row}, **NEARLY)
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (found / "adapter", expected))
    assert ours.keys() == theirs.keys()
    for tensor, value in theirs.items():
        assert (ours[tensor] - value).norm() <= 1e-3 * value.norm(), tensor


@pytest.mark.parametrize("name", make.RUNS)
def test_an_earlier_run_is_resumed_and_ends_as_it_would_have(here, run, name):
    assert "from step-00000004" in run("distft.train", *make.RUNS[name], "steps=8")
    assert_went_on(here, name)


@pytest.mark.parametrize("name", make.RUNS)
def test_an_earlier_run_is_evaluated_to_the_numbers_of_its_time(here, run, name):
    written = json.loads((here / name / "evaluation.json").read_text())
    (here / name / "evaluation.json").unlink()
    run("distft.evaluate", f"run={name}")
    again = json.loads((here / name / "evaluation.json").read_text())
    assert again["data"] == written["data"]
    for side in ("base", "trained"):
        assert again[side] == pytest.approx(written[side], **NEARLY)


@pytest.mark.parametrize("name", make.RUNS)
def test_an_earlier_run_is_exported(here, run, name):
    run("distft.export", f"run={name}", "export.to=merged")
    merged = load_file(here / name / "exports" / "merged" / "model.safetensors")
    assert merged and all(torch.isfinite(tensor).all() for tensor in merged.values())


def test_a_job_that_waits_in_the_queue_since_earlier_runs(here, run):
    """A requeue replays the pickle of the day it was submitted, which names a class of ours by its module."""
    config = (here / "chats" / "config.yaml").read_text()
    (here / "config.yaml").write_text(config.replace("\nsteps: 4\n", "\nsteps: 8\n"))
    env = {f"SUBMITIT_LOCAL_{key}": value for key, value in LOCAL_JOB.items()} | {"SUBMITIT_EXECUTOR": "local"}
    run("submitit.core._submit", str(here), env=env)
    assert_went_on(here, "chats")
