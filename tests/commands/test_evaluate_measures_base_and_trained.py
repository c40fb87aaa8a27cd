"""The numbers of an evaluation are those that training ended with, in one process and in several."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import command_runs
import pytest

from distft.tracking import metrics

EVALUATE = "distft.evaluate"


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in metrics.read(run / metrics.FILE) if row["split"] == "eval"]


def result(run: Path) -> dict:
    return json.loads((run / "evaluation.json").read_text())


@pytest.mark.parametrize("name", ["lora", "nf4", "dora", "pissa", "head", "full"])
def test_both_columns_are_the_first_and_the_last_row_of_training(name, trained, command):
    run = trained(name)
    done = command(EVALUATE, f"run={run}")
    assert done.code == 0, done.err
    assert [result(run)[part]["loss"] for part in ("base", "trained")] == losses(run)[:: len(losses(run)) - 1]
    assert f"{losses(run)[0]:.4f}" in done.out and f"{losses(run)[-1]:.4f}" in done.out


def test_a_second_evaluation_gives_the_same_numbers_and_replies(trained, command):
    run = trained("lora")
    results = []
    for _ in range(2):
        assert command(EVALUATE, f"run={run}", "evaluation.samples=2").code == 0
        results.append({key: value for key, value in result(run).items() if key != "time"})
    assert results[0] == results[1]
    assert len(results[0]["samples"]) == 2
    assert not list(run.glob(".evaluation*")), "nothing is left beside it"


MEETING = """
import os, pathlib, time
replace = pathlib.Path.replace

def meet(self, target):
    if pathlib.Path(target).name == "evaluation.json":
        pathlib.Path(os.environ["MEETING"], str(os.getpid())).touch()
        while len(os.listdir(os.environ["MEETING"])) < 2:
            time.sleep(0.01)
    return replace(self, target)

pathlib.Path.replace = meet
"""
"""In a process's sitecustomize: both evaluations have written what they put aside before either puts it in place."""


def test_two_evaluations_at_the_same_time_both_succeed(trained, tmp_path):
    run = shutil.copytree(trained("lora"), tmp_path / "lora")
    for folder in ("site", "meeting"):
        (tmp_path / folder).mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(MEETING)
    path = os.pathsep.join([str(tmp_path / "site"), str(Path(__file__).parents[2])])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "MEETING": str(tmp_path / "meeting")}
    both = [
        subprocess.Popen([sys.executable, "-m", EVALUATE, f"run={run}"], env=env, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    ends = [(process.communicate(timeout=240)[1], process.returncode) for process in both]
    assert [code for _, code in ends] == [0, 0], ends
    assert len(list((tmp_path / "meeting").iterdir())) == 2, "both came to the file at the same time"
    assert [result(run)[part]["loss"] for part in ("base", "trained")] == losses(run)[:: len(losses(run)) - 1]
    assert not [file for file in run.iterdir() if file.name.startswith(".evaluation")]


def test_other_data_is_measured_whole_and_without_the_training_data(trained, command, tmp_path):
    run = shutil.copytree(trained("lora"), tmp_path / "lora")
    command_runs.make_data(tmp_path / "other.jsonl", word="figure")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("chats.jsonl", "gone.jsonl"))
    done = command(EVALUATE, f"run={run}", f"data.eval={tmp_path / 'other.jsonl'}")
    assert done.code == 0, done.err
    assert result(run)["data"]["documents"] == 60
    assert result(run)["trained"]["loss"] not in losses(run)


def test_two_fsdp_ranks_measure_what_one_does(trained):
    run = trained("lora")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = ["--standalone", "--nproc-per-node", "2", "-m", EVALUATE, f"run={run}", "engine=fsdp"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("perplexity") == 1, "one rank prints"
    assert [result(run)[part]["loss"] for part in ("base", "trained")] == pytest.approx(losses(run), rel=1e-6)


def test_bad_input_is_named(trained, command, tmp_path):
    run = trained("lora")
    for argv, told in {
        (f"run={run}x",): "did you mean",
        (f"run={run}", "evaluate.checkpoint=9"): "steps there: 3",
        (f"run={run}", "evaluate.checkpiont=9"): "did you mean evaluate.checkpoint?",
        (f"run={run}", "adapter.r=4"): "adapter.r: must be what the run trained with, 16, got 4",
        (f"run={run}", "data.eval=gone.jsonl"): "data.eval: path must exist",
        (f"run={run}", "data.eval_fraction=0", "evaluation.samples=0"): "data.eval: must be set",
    }.items():
        done = command(EVALUATE, *argv)
        assert done.code == 2 and told in done.err, (argv, done)


@pytest.mark.parametrize("program", [EVALUATE, "distft.export"])
def test_help_and_errors_come_as_a_process_says_them(program, tmp_path):
    def run(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-X", "importtime", "-m", program, *words], capture_output=True, text=True
        )

    shown = run("--help")
    assert shown.returncode == 0 and f"python -m {program} run=runs/NAME" in shown.stdout
    wrong = run(f"run={tmp_path / 'none'}")
    assert wrong.returncode == 2 and "error: " in wrong.stderr
    assert not [line for line in (shown.stderr + wrong.stderr).splitlines() if line.endswith("| torch")]
