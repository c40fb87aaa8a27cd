"""Which rank this process is, told by torchrun, by Slurm or by nothing. Imports no torch."""

import os
import re
from dataclasses import dataclass

from distft.errors import ConfigError


@dataclass(frozen=True)
class Ranks:
    """This process among all: `global_rank` of `world_size`, `local_rank` of `local_world_size` on its node."""

    global_rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    master_addr: str = "127.0.0.1"
    master_port: int = 0
    launcher: str = "none"

    @property
    def is_main(self) -> bool:
        return self.global_rank == 0


def read_ranks(env: dict[str, str] | None = None) -> Ranks:
    """Ranks from torchrun's variables, else from `srun`'s, else one process.

    Raises ConfigError where a variable is missing or is not what its setter writes: they are input.
    """
    env = dict(os.environ) if env is None else env
    if "RANK" in env and "WORLD_SIZE" in env:
        return Ranks(
            global_rank=_integer(env, "RANK"),
            world_size=_integer(env, "WORLD_SIZE"),
            local_rank=_integer(env, "LOCAL_RANK"),
            local_world_size=_integer(env, "LOCAL_WORLD_SIZE", default="1"),
            master_addr=env.get("MASTER_ADDR", "127.0.0.1"),
            master_port=_integer(env, "MASTER_PORT"),
            launcher="torchrun",
        )
    # An `sbatch` script or a login shell has SLURM_JOB_ID too: only a step made by srun has a process id in it.
    if "SLURM_PROCID" in env and "SLURM_STEP_NODELIST" in env and env.get("SLURM_STEP_ID", "").isdigit():
        nodes = _integer(env, "SLURM_NNODES", default="1")
        world_size = _integer(env, "SLURM_NTASKS", default="1")
        return Ranks(
            global_rank=_integer(env, "SLURM_PROCID"),
            world_size=world_size,
            local_rank=_integer(env, "SLURM_LOCALID"),
            local_world_size=world_size // nodes,
            master_addr=first_host(env["SLURM_STEP_NODELIST"]),
            master_port=20000 + (_integer(env, "SLURM_JOB_ID") * 7 + _integer(env, "SLURM_STEP_ID")) % 12000,
            launcher="slurm",
        )
    return Ranks()


def first_host(nodelist: str) -> str:
    """First host of a Slurm node list: `gpu[003-007,9],login` gives `gpu003`."""
    match = re.match(r"^([A-Za-z0-9][A-Za-z0-9.-]*)(?:\[(\d+)[\d,-]*\])?([A-Za-z0-9.-]*)(?:,|$)", nodelist)
    if not match:
        raise ConfigError(f"SLURM_STEP_NODELIST: must be a Slurm node list, got {nodelist!r}; start by srun")
    prefix, number, suffix = match.groups()
    return prefix + (number or "") + suffix


def _integer(env: dict[str, str], key: str, default: str | None = None) -> int:
    value = env.get(key, default)
    if value is None or not value.isdigit():
        raise ConfigError(f"{key}: must be a whole number, got {value!r}; start by torchrun or srun, or unset it")
    return int(value)
