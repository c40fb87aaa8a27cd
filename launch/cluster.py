"""From the config's cluster section to submitit's executor. The only file here that knows submitit."""

from pathlib import Path
from typing import Any

import submitit

from distft.config.schema import Local, Slurm


def executor(cluster: Local | Slurm, name: str, folder: Path) -> submitit.Executor:
    """The executor for `cluster`; job scripts and logs go to `folder`."""
    made = submitit.AutoExecutor(folder=folder, cluster=cluster.name)
    made.update_parameters(name=name, **parameters(cluster))
    return made


def parameters(cluster: Local | Slurm) -> dict[str, Any]:
    """submitit's parameters: its shared ones, and Slurm's own with their prefix."""
    if isinstance(cluster, Local):
        return {"nodes": 1, "tasks_per_node": cluster.tasks, "timeout_min": 7 * 24 * 60}
    chosen = {
        "slurm_partition": cluster.partition,
        "slurm_account": cluster.account,
        "slurm_qos": cluster.qos,
        "slurm_constraint": cluster.constraint,
        "slurm_mem": f"{int(cluster.mem_gb * 1024)}M" if cluster.mem_gb else None,
    }
    return {
        "nodes": cluster.nodes,
        "tasks_per_node": cluster.ranks_per_node,
        "slurm_gres": f"gpu:{cluster.gpus_per_node}" if cluster.gpus_per_node else None,
        "cpus_per_task": cluster.cpus_per_task,
        "timeout_min": cluster.time_min,
        # srun leaves the other ranks running when one dies.
        "slurm_srun_args": ["--kill-on-bad-exit=1"],
        # SIGUSR2 comes this long before the limit: a step and a save must fit.
        "slurm_signal_delay_s": 120,
        **chosen,
    }


def ranks_of_local_task() -> tuple[int, int]:
    """Global rank and world size of a task of submitit's local executor."""
    environment = submitit.JobEnvironment()
    return environment.global_rank, environment.num_tasks
