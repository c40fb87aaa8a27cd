"""From the config's cluster section to submitit. The only file here that knows submitit."""

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.slurm.slurm import _make_sbatch_string

from distft.config.schema import AnyCluster, Local, Slurm

EXPORTED = re.compile(
    r"^(PATH|HOME|USER|LOGNAME|SHELL|LANG|LC_[A-Z]+|TZ|PYTHONPATH|VIRTUAL_ENV|CONDA_PREFIX|LD_LIBRARY_PATH|XDG_CACHE_HOME"
    r"|HF_HOME|HF_HUB_CACHE|HF_HUB_OFFLINE|HF_ENDPOINT|WANDB_MODE|WANDB_BASE_URL|OMP_NUM_THREADS|DS_ACCELERATOR"
    r"|NCCL_[A-Z_]+|TORCH_[A-Z_]+|CUDA_HOME|SLURM_CONF)$"
)
"""The variables that a Slurm job gets. Tokens and keys are none of them: jobs read those from their files in $HOME."""

VISIBLE = "DISTFT_VISIBLE_DEVICES"
"""What CUDA_VISIBLE_DEVICES was where a local job was submitted."""


def submit(cluster: AnyCluster, name: str, folder: Path, jobs: Sequence[Any]) -> list[tuple[str, Path]]:
    """Submits callables, several as one array; returns each one's job id and log. Scripts and logs go to `folder`."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        os.environ[VISIBLE] = os.environ["CUDA_VISIBLE_DEVICES"]
    kind = {"slurm_python": python(cluster)} if isinstance(cluster, Slurm) else {}
    executor = submitit.AutoExecutor(folder=folder, cluster=cluster.name, **kind)
    executor.update_parameters(name=name, **parameters(cluster, folder))
    submitted = executor.submit_array(jobs) if len(jobs) > 1 else [executor.submit(jobs[0])]
    return [(job.job_id, job.paths.stdout) for job in submitted]


def script(cluster: Slurm, name: str, folder: Path, num_jobs: int) -> str:
    """The sbatch script that `submit` would write. submitit makes it in a function of its own, on any machine."""
    given = parameters(cluster, folder)
    renamed = {"nodes": "nodes", "tasks_per_node": "ntasks_per_node", "timeout_min": "time"}
    settings = {renamed.get(key, key).removeprefix("slurm_"): value for key, value in given.items()}
    command = f"{python(cluster)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    count = num_jobs if num_jobs > 1 else None
    return str(_make_sbatch_string(command=command, folder=folder, job_name=name, map_count=count, **settings))


def parameters(cluster: AnyCluster, folder: Path) -> dict[str, Any]:
    """submitit's parameters: its shared ones, and Slurm's own with their prefix."""
    if isinstance(cluster, Local):
        return {"nodes": 1, "tasks_per_node": cluster.tasks, "timeout_min": 7 * 24 * 60}
    exported = ",".join(sorted(name for name in os.environ if EXPORTED.match(name)))
    return {
        "nodes": cluster.nodes,
        "tasks_per_node": cluster.ranks_per_node,
        "cpus_per_task": cluster.cpus_per_task,
        "timeout_min": cluster.time_min,
        "stderr_to_stdout": True,
        "slurm_partition": cluster.partition,
        "slurm_account": cluster.account,
        "slurm_qos": cluster.qos,
        "slurm_constraint": cluster.constraint,
        "slurm_exclude": cluster.exclude,
        "slurm_mem": f"{int(cluster.mem_gb * 1024)}M" if cluster.mem_gb else None,
        "slurm_gres": f"gpu:{cluster.gpus_per_node}" if cluster.gpus_per_node else None,
        "slurm_signal_delay_s": cluster.signal_s,
        "slurm_array_parallelism": cluster.max_parallel,
        "slurm_additional_parameters": {"export": exported, "requeue": True},
        # srun leaves the other ranks running when one dies; and it takes over sbatch's list of variables, if not told.
        "slurm_srun_args": ["--kill-on-bad-exit=1", "--export=ALL"],
        "slurm_setup": [*BEFORE, *cluster.setup],
        "slurm_teardown": after(folder),
    }


BEFORE = [
    "umask 077",
    "trap : TERM  # the script outlives a signal to the job: it waits for the ranks, which save",
    'export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"',
    # Newer Slurm says when the job's time is up; ranks in a container cannot ask.
    'ends=$(squeue -h -j "$SLURM_JOB_ID" -o %e); case $ends in 2*) '
    'export SLURM_JOB_END_TIME="${SLURM_JOB_END_TIME:-$(date +%s -d "$ends")}";; esac',
]


def after(folder: Path) -> list[str]:
    """What the batch script does once its ranks have ended: it has the job requeued, if that is to be."""
    return [
        "code=$?",
        "trap '' TERM  # a requeue ends this script",
        f'{shlex.quote(sys.executable)} -m launch.requeue "$code" {shlex.quote(str(folder))}/'
        '"config-${SLURM_ARRAY_TASK_ID:-0}.yaml"',
        "exit $?",
    ]


def python(cluster: Slurm) -> str:
    return shlex.join([*cluster.container, sys.executable])


def local_task() -> tuple[str, int, int]:
    """Job id, global rank and world size of a task of submitit's local executor. That hides all GPUs: shows them."""
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    if VISIBLE in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ[VISIBLE]
    environment = submitit.JobEnvironment()
    return environment.job_id, environment.global_rank, environment.num_tasks
