"""python -m launch.cancel RUN [--now]: asks a run or a sweep to save and stop, and keeps it from being requeued."""

import os
import signal
from pathlib import Path

from distft.errors import ConfigError
from distft.run.owner import Card
from distft.runtime import slurm
from distft.runtime.command import run_command
from launch.record import CANCEL, Record
from launch.status import runs_in


def main(argv: list[str]) -> None:
    folders = [Path(word) for word in argv if not word.startswith("-")]
    if unknown := [word for word in argv if word.startswith("-") and word != "--now"]:
        raise ConfigError(f"{unknown[0]}: no such option; options: --now, which kills without a save")
    if not folders:
        raise ConfigError("RUN: must be a run's or a sweep's folder, got nothing; give runs/NAME")
    for folder in folders:
        for run in runs_in(folder):
            print(f"{run}: {cancel(run, now='--now' in argv)}")


def cancel(run: Path, *, now: bool) -> str:
    """Stops a run; says how."""
    record, card = Record.read(run), Card.read(run)
    # The last one submitted, and the one that began the run: the same, but for a batch script's.
    jobs = [record.job if record and record.cluster == "slurm" else None, card.job if card else None]
    states = {job: slurm.job_state(job) for job in jobs if job}
    waits_or_runs = ("PENDING", *slurm.HOLDS_NODES)
    job, state = next(((job, state) for job, state in states.items() if state in waits_or_runs), (None, None))
    if job and state == "PENDING":
        (run / CANCEL).touch()
        return _told(slurm.ask("scancel", job), f"job {job} is taken out of the queue")
    if job:
        (run / CANCEL).touch()
        if now:
            return _told(slurm.ask("scancel", job), f"job {job} is killed")
        # To the ranks alone: the batch script waits for them.
        return _told(slurm.ask("scancel", "--signal=TERM", job), f"job {job} saves and stops")
    if card is None or card.released or not card.is_here_and_alive():
        return "nothing of it runs"
    os.kill(card.pid, signal.SIGKILL if now else signal.SIGTERM)
    return f"process {card.pid} " + ("is killed" if now else "saves and stops")


def _told(answer: str | None, what: str) -> str:
    return what if answer is not None else "scancel refused"


if __name__ == "__main__":
    run_command(main)
