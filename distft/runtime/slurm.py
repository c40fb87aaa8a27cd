"""What Slurm knows of a job, asked through its own commands. Every answer may be missing: None says so."""

import os
import subprocess
import time
from collections.abc import Mapping
from datetime import datetime

TIMEOUT_S = 20
HOLDS_NODES = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "CONFIGURING"}
GONE = "GONE"
"""The state of a job that Slurm has forgotten."""


def ask(*command: str) -> str | None:
    """What `command` prints; None where it is not installed, fails, or the controller does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if "Invalid job id" in done.stderr:
        return ""
    return done.stdout.strip() if done.returncode == 0 else None


def job_state(job_id: str) -> str | None:
    """`RUNNING`, `PENDING`, `CANCELLED`, ... as `squeue` has it, or GONE."""
    answer = ask("squeue", "--noheader", "--states=all", f"--jobs={job_id}", "--format=%T")
    return answer if answer is None else (answer.splitlines() or [GONE])[0]


def job_ends_at(job_id: str, env: Mapping[str, str] | None = None) -> float | None:
    """When the job's time is up, in seconds since the epoch; None: there is no limit, or nobody knows it."""
    env = os.environ if env is None else env
    if env.get("SLURM_JOB_END_TIME", "").isdigit():  # newer Slurm, or the batch script: containers have no squeue
        return float(env["SLURM_JOB_END_TIME"])
    answer = ask("squeue", "--noheader", f"--jobs={job_id}", "--format=%e")
    try:
        return time.mktime(datetime.fromisoformat(answer).timetuple()) if answer else None
    except ValueError:  # N/A
        return None
