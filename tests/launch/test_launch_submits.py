"""`python -m launch` runs a job on this machine, and hands Slurm the right script."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

TINY = [
    "+exp=llama_lora",
    "model=tiny",
    "steps=2",
    "evaluation.samples=0",
    "data.eval_fraction=0",
    "data.max_length=64",
]
FAKE_SBATCH = """#!/bin/sh
for last; do :; done
cp "$last" "$FAKE_SLURM/submitted.sh"
echo "Submitted batch job 4711"
"""


def launch(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "launch", *TINY, *words]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(env or {})}, timeout=120)


@pytest.fixture
def fake_slurm(tmp_path: Path) -> dict[str, str]:
    """An sbatch that keeps the script it is given, and an srun so that submitit takes this for a cluster."""
    for name, text in {"sbatch": FAKE_SBATCH, "srun": "#!/bin/sh\n"}.items():
        (tmp_path / name).write_text(text)
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
        "cluster.partition=gpu",
        "cluster.nodes=2",
        "cluster.gpus_per_node=2",
        "cluster.time_min=90",
    ]
    done = launch(*words, f"run_root={tmp_path}", "name=there", "data.global_batch=8", env=fake_slurm)
    assert done.returncode == 0, done.stderr
    assert "4711" in done.stdout
    script = (tmp_path / "submitted.sh").read_text()
    for line in ("--partition=gpu", "--nodes=2", "--gres=gpu:2", "--ntasks-per-node=2", "--time=90"):
        assert f"#SBATCH {line}\n" in script
    assert "--kill-on-bad-exit=1" in script


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["cluster=slurm", "cluster.time_min=9", "cluster.partition='a;touch pwned'"], "cluster.partition"),
        (["cluster=slurm"], "cluster.time_min"),
        (["cluster=local", "cluster.tasks=3"], "data.global_batch"),
    ],
)
def test_a_wrong_job_is_refused_and_nothing_is_queued(tmp_path, fake_slurm, words, told):
    done = launch(*words, f"run_root={tmp_path}/runs", env=fake_slurm)
    assert done.returncode == 2
    assert told in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "submitted.sh").exists() and not (tmp_path / "runs").exists()
