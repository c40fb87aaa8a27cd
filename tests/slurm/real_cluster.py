"""A real Slurm of two nodes for tests, and what can happen to it."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distft.run.status import Status
from distft.runtime import slurm
from launch.command import main as launch_main
from launch.record import Record

SCRIPT = Path(__file__).parents[2] / "slurm" / "testcluster"
NEEDED = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "ip")
MISSING = [name for name in NEEDED if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]


class RealCluster:
    """Two nodes, `n1` and `n2`; partitions main, low and high."""

    def __init__(self, name: str) -> None:
        os.environ.update(SLURMTEST_NAME=name, SLURMTEST_SLURMD_TIMEOUT="6", OMP_NUM_THREADS="1")
        self.call("up", "2")
        words = self.call("env").split("=", 1)
        os.environ["SLURM_CONF"] = words[1].strip()

    def call(self, *words: str, timeout_s: float = 60) -> str:
        """A verb of slurm/testcluster; its output."""
        done = subprocess.run([str(SCRIPT), *words], capture_output=True, text=True, timeout=timeout_s)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def launch(self, run_dir: Path, words: list[str]) -> str:
        """`python -m launch` without its start-up time; the job's id."""
        launch_main(words)
        record = Record.read(run_dir)
        assert record is not None
        return record.job

    def ranks_on(self, node: int, folder: Path) -> list[int]:
        """Process ids, as this host sees them, of the ranks of a run on a node."""
        init = (Path(self.folder) / "run" / f"n{node}.id").read_text().split()[0]
        space = Path(f"/proc/{init}/ns/pid").readlink()
        return [pid for pid in processes_of(folder) if _namespace(pid) == space]

    @property
    def folder(self) -> str:
        return str(Path(os.environ["SLURM_CONF"]).parents[1])


def run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=cwd)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def processes_of(folder: Path) -> list[int]:
    """Every process on this machine, in whatever namespace, that trains in `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if state != "Z" and str(folder) in words and ("submitit" in words or "distft.train" in words):
                found.append(int(entry.name))
    return sorted(found)


def _namespace(pid: int) -> Path | None:
    try:
        return Path(f"/proc/{pid}/ns/pid").readlink()
    except OSError:
        return None


def until(true: Callable[[], Any], timeout_s: float = 120, what: Callable[[], object] = lambda: "") -> Any:
    """What `true` says at last."""
    end = time.monotonic() + timeout_s
    while not (found := true()):
        assert time.monotonic() < end, f"not within {timeout_s} s: {what()}"
        time.sleep(0.1)
    return found


def reached(run_dir: Path, step: int, timeout_s: float = 120) -> None:
    """Until a training step was logged."""
    file = run_dir / "metrics.jsonl"
    text = f'"step": {step}, "split": "train"'
    until(lambda: file.exists() and text in file.read_text(), timeout_s, lambda: story(run_dir))


def ends(run_dir: Path, job: str, state: str, timeout_s: float = 240) -> Status:
    """Until the run is in `state` and Slurm is done with its job."""

    def there() -> bool:
        return Status.read(run_dir).state == state and slurm.job_state(job) not in ("RUNNING", "COMPLETING", "PENDING")

    until(there, timeout_s, lambda: f"{Status.read(run_dir)} {slurm.job_state(job)}\n{story(run_dir)}")
    return Status.read(run_dir)


def story(run_dir: Path) -> str:
    """The ends of a job's logs."""
    record = Record.read(run_dir)
    folders = [Path(record.log).parent] if record else [run_dir.parent]
    logs = [file for folder in folders for file in sorted([*folder.glob("*.out"), *folder.glob("*.log")])]
    return "\n".join(f"--- {file}\n{file.read_text(errors='replace')[-6000:]}" for file in logs)
