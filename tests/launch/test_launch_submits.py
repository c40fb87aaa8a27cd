"""`python -m launch` runs a job on this machine, and hands Slurm the right script."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

TINY = [
    "+exp=llama_lora",
    "model=tiny",
    "steps=2",
    "evaluation.samples=0",
    "data.eval_fraction=0",
    "data.max_length=64",
]
FAKE = {
    "sbatch": 'for last; do :; done\ncp "$last" "$FAKE_SLURM/submitted.sh"\necho "Submitted batch job 4711"',
    "srun": "",
    "sinfo": "echo 'gpu*|4|gpu:a100:8(S:0-1)|2-00:00:00|4:00:00'\necho 'cpu|9|(null)|infinite|n/a'",
    "squeue": "test -f $FAKE_SLURM/queued && cat $FAKE_SLURM/queued",
}


def launch(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "launch", *TINY, *words]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(env or {})}, timeout=120)


@pytest.fixture
def fake_slurm(tmp_path: Path) -> dict[str, str]:
    """An sbatch that keeps the script it is given; a cluster of two partitions as sinfo tells it."""
    for name, text in FAKE.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "FAKE_SLURM": str(tmp_path)}


def test_a_local_job_of_two_ranks_trains_to_its_end(tmp_path):
    done = launch("cluster=local", "cluster.tasks=2", "name=here", f"run_root={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "submitted" in done.stdout and "watch" in done.stdout
    adapter = tmp_path / "here" / "adapter" / "adapter_model.safetensors"
    until = time.monotonic() + 200
    while not adapter.exists() and time.monotonic() < until:
        time.sleep(1)
    assert adapter.exists(), "\n".join(file.read_text()[-2000:] for file in tmp_path.glob(".submitted/here/*.err"))
    assert json.loads((tmp_path / "here" / "environment.json").read_text())["world_size"] == 2


def test_slurm_is_handed_the_resources_asked_for(tmp_path, fake_slurm):
    words = [
        "cluster=slurm",
        "cluster.nodes=2",
        "cluster.gpus_per_node=2",
        'cluster.exclude="gpu[7-9]"',
        "cluster.container=[apptainer,exec,a b.sif]",
        "cluster.setup=[module load cuda]",
    ]
    secret = {"WANDB_API_KEY": "canary", "HF_TOKEN": "canary", "NCCL_DEBUG": "WARN"}
    done = launch(*words, f"run_root={tmp_path}", "name=there", "data.global_batch=8", env=fake_slurm | secret)
    assert done.returncode == 0, done.stderr
    assert "4711" in done.stdout and "python -m launch.status" in done.stdout
    script = (tmp_path / "submitted.sh").read_text()
    for line in ("--nodes=2", "--gres=gpu:2", "--ntasks-per-node=2", "--exclude='gpu[7-9]'", "--requeue"):
        assert f"#SBATCH {line}\n" in script
    assert "#SBATCH --time=240\n" in script, "the partition's default, in minutes"
    exported = next(line for line in script.splitlines() if "--export=" in line and line.startswith("#SBATCH"))
    assert "NCCL_DEBUG" in exported and "HOME" in exported
    assert "WANDB_API_KEY" not in exported and "HF_TOKEN" not in exported and "ALL" not in exported
    assert "\nmodule load cuda\n" in script and "apptainer exec 'a b.sif'" in script
    assert "--kill-on-bad-exit=1" in script and "-m launch.requeue" in script
    for file in (tmp_path / ".submitted").rglob("*"):
        assert not file.is_file() or b"canary" not in file.read_bytes()
        assert file.stat().st_mode & 0o077 == 0, f"{file} may be read by others"


def test_dry_shows_script_and_plan_and_queues_nothing(tmp_path, fake_slurm):
    done = launch("cluster=slurm", "cluster.nodes=2", "dry=true", f"run_root={tmp_path}/runs", env=fake_slurm)
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --nodes=2" in done.stdout and "dry: nothing was queued" in done.stdout
    assert "batch    4 rows = 1 x 2 accumulated x 2" in done.stdout
    assert not (tmp_path / "submitted.sh").exists() and not (tmp_path / "runs").exists()


def test_a_sweep_is_one_array_of_configs_that_were_all_checked(tmp_path, fake_slurm):
    words = ["--multirun", "cluster=slurm", f"run_root={tmp_path}", "name=grid", "cluster.max_parallel=2"]
    done = launch(*words, "optim.lr=1e-3,1e-4", "adapter.r=8,0", env=fake_slurm)
    assert done.returncode == 2
    assert "adapter.r: must be a whole number > 0, got 0" in done.stderr
    assert "optim.lr=0.0001,adapter.r=0" in done.stderr and not (tmp_path / "submitted.sh").exists()
    done = launch(*words, "optim.lr=1e-3,1e-4", "adapter.r=8,16", env=fake_slurm)
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --array=0-3%2\n" in (tmp_path / "submitted.sh").read_text()
    folders = sorted(path.name for path in (tmp_path / "grid").iterdir() if path.is_dir())
    assert folders == sorted(f"optim.lr={lr},adapter.r={r}" for lr in ("0.001", "0.0001") for r in (8, 16))
    configs = [yaml.safe_load(file.read_text()) for file in sorted((tmp_path / ".submitted").rglob("config-*.yaml"))]
    assert [(c["optim"]["lr"], c["adapter"]["r"]) for c in configs] == [(1e-3, 8), (1e-3, 16), (1e-4, 8), (1e-4, 16)]
    points = yaml.safe_load((tmp_path / "grid" / "sweep.yaml").read_text())["points"]
    assert [config["name"] for config in configs] == [point["name"] for point in points]


def test_a_run_whose_job_waits_in_the_queue_is_not_queued_twice(tmp_path, fake_slurm):
    words = ["cluster=slurm", f"run_root={tmp_path}", "name=twice"]
    assert launch(*words, env=fake_slurm).returncode == 0
    (tmp_path / "queued").write_text("PENDING\n")
    second = launch(*words, env=fake_slurm)
    assert second.returncode == 2 and "belongs to job 4711, which is in the queue" in second.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["cluster=slurm", "cluster.partition='a;touch pwned'"], "cluster.partition"),
        (["cluster=slurm", "cluster.partition=gpus"], "did you mean gpu?"),
        (
            ["cluster=slurm", "cluster.partition=cpu"],
            "must be set, got null and partition cpu has no default",
        ),
        (["cluster=slurm", "cluster.nodes=5", "data.global_batch=20"], "at most the 4 of partition gpu, got 5"),
        (["cluster=slurm", "cluster.gpus_per_node=16", "data.global_batch=16"], "at most the 8 GPUs of a node"),
        (["cluster=slurm", "cluster.time_min=9999"], "limit of partition gpu, 2880 minutes, got 9999"),
        (["cluster=slurm", "cluster.exclude='n1;id'"], "cluster.exclude"),
        (["cluster=slurm", "cluster.setup=['a\nb']"], "cluster.setup"),
        (["cluster=local", "cluster.tasks=3"], "data.global_batch"),
        (["cluster=slurm", "data.train=nowhere.jsonl"], "data.train: path must exist"),
        (
            ["cluster=slurm", "model=hub", "model.source=no/such-model"],
            "the hub must answer for it, got 'no/such-model'",
        ),
        (["cluster=slurm", "name='x\ntouch pwned'"], "name: must be at most 128 letters"),
        (["--multirun", "cluster=slurm", "cluster.nodes=1,2"], "cluster.nodes: must be the same in all points"),
        (["--multirun", "cluster=slurm"], "--multirun: must have a key with several values"),
    ],
)
def test_a_wrong_job_is_refused_and_nothing_is_queued(tmp_path, fake_slurm, words, told):
    done = launch(*words, f"run_root={tmp_path}/runs", env=fake_slurm)
    assert done.returncode == 2, done.stdout + done.stderr
    assert told in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "submitted.sh").exists() and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("more", [["data.train="], ["data.eval_fraction=0", "data.eval="], ["data.replay="]])
def test_every_source_is_opened_before_a_job_waits_for_it(tmp_path, fake_slurm, more):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": 1}\n')
    *words, key = more
    done = launch("cluster=slurm", *words, f"{key}{bad}", f"run_root={tmp_path}/runs", env=fake_slurm)
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"{key.removesuffix('=')}: columns must be those of one of the formats, got question" in done.stderr
    assert not (tmp_path / "submitted.sh").exists()
