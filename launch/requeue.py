"""python -m launch.requeue CODE CONFIG: what a batch script calls once its ranks have ended with CODE.

CONFIG is the resolved config's file, or the words that the ranks were started with. Decides whether the job is to run
again, on which nodes not, and says so; exits with CODE.
"""

from pathlib import Path

from distft.config.reading.compose import load
from distft.config.reading.resolved import load_resolved
from distft.config.schema import Config
from distft.errors import EXIT_OK, EXIT_STOPPED
from distft.run.folder import RunFolder
from distft.run.status import EXCLUDED_AT, Status, end
from distft.runtime import slurm
from distft.runtime.command import leave, run_command
from distft.runtime.env import read_job
from launch.record import CANCEL

KILLED = 128
"""Exit codes from here on say that a signal killed a rank: out of memory, a broken device, a rank that was shot."""


def main(argv: list[str]) -> None:
    code, words = int(argv[0]), argv[1:]
    if code == EXIT_OK:
        return
    job = read_job()
    file = Path(words[0]) if len(words) == 1 and words[0].endswith(".yaml") else None
    config = load_resolved(file, here=False) if file else load(words, program="distft.train", here=False)
    run_dir = RunFolder(config).path
    status = Status.read(run_dir)
    cancelled = (run_dir / CANCEL).exists()
    refusal = why_not(code, status, slurm.job_state(job.id) if job else None, config, cancelled=cancelled)
    if status.state in ("starting", "running") and run_dir.exists():  # rank 0 had no time to say it
        end(run_dir, "failed", f"its ranks ended with exit code {code}")
    told = f"not requeued: {refusal}" if refusal or not job else requeue(job.id, excluded(config, status))
    print(f"{run_dir.name} ended with exit code {code}: {told}")
    leave(code)


def why_not(code: int, status: Status, state: str | None, config: Config, *, cancelled: bool) -> str | None:
    """Why a job is not to be requeued; None: it is."""
    if code < KILLED and code != EXIT_STOPPED and status.state not in ("hung", "unfit"):
        return status.reason or "it failed"
    if cancelled:
        return "it was cancelled"
    if state != "RUNNING":
        return f"Slurm has it as {state}, and does with it as it must"
    if status.starts_without_progress >= config.cluster.max_restarts:
        return (
            f"it has made no step that was saved in {status.starts_without_progress + 1} starts "
            f"(cluster.max_restarts={config.cluster.max_restarts})"
        )
    return None


def excluded(config: Config, status: Status) -> list[str]:
    bad = sorted(node for node, count in status.bad_nodes.items() if count >= EXCLUDED_AT)
    given = [config.cluster.exclude] if config.cluster.exclude else []
    return [*given, *bad] if bad else []


def requeue(job_id: str, exclude: list[str]) -> str:
    """Has Slurm run the job again. It stays pending for a moment, in which nodes can still be excluded."""
    if slurm.ask("scontrol", "requeue", job_id) is None:
        return "scontrol refused to requeue it"
    if not exclude:
        return "requeued"
    nodes = ",".join(exclude)
    if slurm.ask("scontrol", "update", f"JobId={job_id}", f"ExcNodeList={nodes}") is None:
        return f"requeued; it may get {nodes} again: scontrol would not exclude them"
    return f"requeued without {nodes}"


if __name__ == "__main__":
    run_command(main)
