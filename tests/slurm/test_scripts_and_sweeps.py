"""Without submitit, and many at once: the batch scripts, arrays, and what of secrets they leave behind."""

import os
import re
import shlex
import subprocess
import sys

import yaml

from distft.run.status import Status
from distft.runtime import slurm
from launch.command import main as launch_main
from launch.status import main as status_main
from launch.status import rows_of
from tests.resume import runs
from tests.slurm.real_cluster import SCRIPT, ends, reached, run, until


def sbatch(script, *words, cwd, options=()):
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(SCRIPT.parents[1])}
    command = ["sbatch", "--parsable", *options, str(SCRIPT.parent / script), *words]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_train_sbatch_on_two_nodes_goes_on_after_a_signal_and_a_requeue(cluster, tiny, straight, tmp_path):
    from tests.slurm.conftest import LONG

    job = sbatch("train.sbatch", *tiny(tmp_path, *LONG), cwd=tmp_path, options=["--nodes=2"])
    reached(tmp_path / "run", 15)
    run("scancel", "--signal=USR2", job)
    until(lambda: Status.read(tmp_path / "run").starts == 2)
    reached(tmp_path / "run", 40)
    run("scontrol", "requeue", job)
    status = ends(tmp_path / "run", job, "finished")
    assert status.starts == 3
    assert runs.adapter(tmp_path / "run") == straight
    assert "run ended with exit code 75: requeued" in (tmp_path / f"distft-{job}.log").read_text()


def test_one_task_a_node_works_with_torchrun_in_it(cluster, tiny, straight, tmp_path):
    from tests.slurm.conftest import LONG

    readme = (SCRIPT.parent / "README.md").read_text()
    (line,) = re.findall(r"^    (srun .*\n.*-m distft\.train) ", readme, re.MULTILINE)  # as it is written there
    line = line.replace("torchrun", f"{sys.executable} -m torch.distributed.run").replace("per-node=8", "per-node=1")
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/bash\n{line} {shlex.join(tiny(tmp_path, *LONG))}\n")
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    command = ["sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", str(script)]
    job = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=30).stdout
    status = ends(tmp_path / "run", job.strip(), "finished")
    assert status.starts == 1
    assert runs.adapter(tmp_path / "run") == straight


def test_sweep_sbatch_runs_a_line_a_task(cluster, tiny, tmp_path):
    lines = [shlex.join(tiny(tmp_path, "steps=2", f"name=s{number}")) for number in (1, 2)]
    (tmp_path / "sweep.txt").write_text("\n".join(lines) + "\n")
    sbatch("sweep.sbatch", "sweep.txt", cwd=tmp_path)
    for name in ("s1", "s2"):
        until(lambda: Status.read(tmp_path / name).state == "finished")  # noqa: B023


def test_a_sweep_is_one_throttled_array_with_a_folder_a_point(cluster, words, tmp_path, capsys):
    axes = ["optim.lr=0.01,0.02", "adapter.r=2,4"]
    common = ["cluster.nodes=1", "cluster.max_parallel=2", "steps=6", "name=grid"]
    launch_main(["--multirun", *words(*common), *axes])
    folder = tmp_path / "grid"
    points = yaml.safe_load((folder / "sweep.yaml").read_text())["points"]
    assert [point["overrides"] for point in points] == [
        [f"optim.lr={lr}", f"adapter.r={r}"] for lr in ("0.01", "0.02") for r in (2, 4)
    ]
    most = 0
    states = [Status.read(folder / point["name"]).state for point in points]
    array = capsys.readouterr().out.split("job ")[1].split(",")[0]
    while states != ["finished"] * 4:
        running = (
            slurm.ask("squeue", "--noheader", "--array", f"--jobs={array}", "--states=RUNNING") or ""
        ).splitlines()
        most = max(most, len(running))
        assert "failed" not in states and "gave_up" not in states
        states = [Status.read(folder / point["name"]).state for point in points]
    assert most == 2
    rows = rows_of([folder])
    assert [row.eval_loss for row in rows] == sorted(row.eval_loss for row in rows)
    status_main([str(folder), "--plot"])
    assert (folder / "table.csv").read_text().count("finished") == 4
    assert "optim.lr=0.01,adapter.r=2 train" in (folder / "curves.html").read_text()


def test_no_secret_is_left_anywhere_and_the_table_needs_no_accounting(cluster, words, tmp_path, monkeypatch, capsys):
    canaries = {"WANDB_API_KEY": "canary0wandb0" + "0" * 27, "HF_TOKEN": "hf_canary0token"}
    for name, value in canaries.items():
        monkeypatch.setenv(name, value)
    job = cluster.launch(tmp_path / "run", words("steps=4", "cluster.nodes=1"))
    told = run("scontrol", "show", "job", job) + run("scontrol", "write", "batch_script", job, "-")
    ends(tmp_path / "run", job, "finished")
    for file in [path for path in tmp_path.rglob("*") if path.is_file()]:
        content = file.read_bytes()
        assert not any(value.encode() in content for value in canaries.values()), file
        assert file.stat().st_mode & 0o077 == 0, f"{file} may be read by others"
    assert not any(value in told for value in canaries.values())
    monkeypatch.setattr(slurm, "ask", lambda *command: None)  # neither squeue nor sacct
    status_main([str(tmp_path / "run")])
    assert re.search(r"run\s+finished\s+4/4", capsys.readouterr().out)
