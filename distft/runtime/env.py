"""Which rank this process is, told by torchrun, by Slurm or by nothing. Imports no torch."""

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from distft.errors import ConfigError


@dataclass(frozen=True)
class Job:
    """The Slurm job that this process belongs to."""

    id: str
    """`1234`, or `1234_7` for a task of an array: what `squeue` and `scancel` take."""
    restarts: int = 0
    """How often Slurm has started it again."""

    @property
    def is_restart(self) -> bool:
        return self.restarts > 0


@dataclass(frozen=True)
class Ranks:
    """This process among all: `global_rank` of `world_size`, `local_rank` of `local_world_size` on its node."""

    global_rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    master_addr: str = "127.0.0.1"
    master_port: int = 0
    """Where torchrun lets the ranks meet; other launchers' ranks agree on a port themselves, by `meeting`."""
    launcher: str = "none"
    meeting: str = ""
    """What all ranks of one start have in common, and no other start has."""
    job: Job | None = None
    node: str = field(default_factory=socket.gethostname)

    @property
    def is_main(self) -> bool:
        return self.global_rank == 0


def read_ranks(env: Mapping[str, str] | None = None) -> Ranks:
    """Ranks from torchrun's variables, else from `srun`'s, else one process.

    Raises ConfigError where a variable is missing or is not what its setter writes: they are input.
    """
    env = os.environ if env is None else env
    job = read_job(env)
    if "RANK" in env and "WORLD_SIZE" in env:
        return Ranks(
            global_rank=_integer(env, "RANK"),
            world_size=_integer(env, "WORLD_SIZE"),
            local_rank=_integer(env, "LOCAL_RANK"),
            local_world_size=_integer(env, "LOCAL_WORLD_SIZE", default="1"),
            master_addr=env.get("MASTER_ADDR", "127.0.0.1"),
            master_port=_integer(env, "MASTER_PORT"),
            launcher="torchrun",
            job=job,
        )
    # An `sbatch` script or a login shell has SLURM_JOB_ID too: only a step made by srun has a process id in it.
    if "SLURM_PROCID" in env and "SLURM_STEP_NODELIST" in env and env.get("SLURM_STEP_ID", "").isdigit():
        world_size = _integer(env, "SLURM_STEP_NUM_TASKS", default=env.get("SLURM_NTASKS", "1"))
        job_id, step_id = _integer(env, "SLURM_JOB_ID"), _integer(env, "SLURM_STEP_ID")
        return Ranks(
            global_rank=_integer(env, "SLURM_PROCID"),
            world_size=world_size,
            local_rank=_integer(env, "SLURM_LOCALID"),
            local_world_size=world_size // _integer(env, "SLURM_STEP_NUM_NODES", default="1"),
            master_addr=first_host(env["SLURM_STEP_NODELIST"]),
            meeting=f"slurm.{job_id}.{step_id}.{job.restarts if job else 0}",
            launcher="slurm",
            job=job,
            node=env.get("SLURMD_NODENAME") or socket.gethostname(),
        )
    return Ranks(job=job)


def read_job(env: Mapping[str, str] | None = None) -> Job | None:
    """The batch job around this process; None outside of one. Raises ConfigError as `read_ranks` does."""
    env = os.environ if env is None else env
    if "SLURM_JOB_ID" not in env:
        return None
    job_id = str(_integer(env, "SLURM_JOB_ID"))
    if "SLURM_ARRAY_JOB_ID" in env:
        job_id = f"{_integer(env, 'SLURM_ARRAY_JOB_ID')}_{_integer(env, 'SLURM_ARRAY_TASK_ID')}"
    return Job(job_id, restarts=_integer(env, "SLURM_RESTART_COUNT", default="0"))


def first_host(nodelist: str) -> str:
    """First host of a Slurm node list: `gpu[003-007,9],login` gives `gpu003`."""
    match = re.match(r"^([A-Za-z0-9][A-Za-z0-9.-]*)(?:\[(\d+)[\d,-]*\])?([A-Za-z0-9.-]*)(?:,|$)", nodelist)
    if not match:
        raise ConfigError(f"SLURM_STEP_NODELIST: must be a Slurm node list, got {nodelist!r}; start by srun")
    prefix, number, suffix = match.groups()
    return prefix + (number or "") + suffix


def _integer(env: Mapping[str, str], key: str, default: str | None = None) -> int:
    value = env.get(key, default)
    if value is None or not (value.isascii() and value.isdigit()):
        raise ConfigError(f"{key}: must be a whole number, got {value!r}; start by torchrun or srun, or unset it")
    return int(value)
