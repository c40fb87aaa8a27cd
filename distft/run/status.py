"""status.json: where a run stands. Small, whole at any instant, written by rank 0; what `launch.status` reads."""

import json
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

from distft.errors import DistftError
from distft.runtime.env import Job
from distft.runtime.files import write_whole

FILE = "status.json"
EXCLUDED_AT = 2
"""A node that kept the run from going on so often is left out of it."""

State = Literal["starting", "running", "stopped", "finished", "failed", "hung", "unfit", "gave_up"]
"""`stopped`: on request, with a checkpoint. `hung`: a rank made no step. `unfit`: a node failed its preflight.
`gave_up`: restarted too often without a step that was saved."""


@dataclass
class Status:
    state: State = "starting"
    reason: str | None = None
    """Why it stopped, in a sentence."""
    step: int = 0
    num_steps: int | None = None
    loss: float | None = None
    """Of the last training step."""
    eval_loss: float | None = None
    """The best so far."""
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    world_size: int | None = None
    job: str | None = None
    starts: int = 0
    starts_without_progress: int = 0
    """Starts in a row, made by Slurm, before which no checkpoint had been added."""
    start_step: int = 0
    """Step of the checkpoint that the last start found."""
    bad_nodes: dict[str, int] = field(default_factory=dict)
    """How often a node had a rank that hung, or failed its preflight."""
    updated: float = 0.0
    """Seconds since the epoch."""

    @classmethod
    def read(cls, run_dir: Path) -> "Status":
        """The status of a run; a fresh one where there is none that can be read."""
        try:
            saved = json.loads((run_dir / FILE).read_text(encoding="utf-8"))
            return cls(**{part.name: saved[part.name] for part in fields(cls) if part.name in saved})
        except (OSError, ValueError, TypeError):
            return cls()

    def write(self, run_dir: Path) -> None:
        self.updated = time.time()
        write_whole(run_dir / FILE, json.dumps(asdict(self), indent=1))


def begin_start(run_dir: Path, job: Job | None, *, newest_step: int, max_restarts: int) -> None:
    """Counts a start. Raises DistftError where Slurm has started the run too often without progress."""
    status = Status.read(run_dir)
    by_slurm = job is not None and job.is_restart
    without = status.starts_without_progress + 1 if by_slurm and newest_step <= status.start_step else 0
    status.state, status.reason, status.job = "starting", None, job.id if job else None
    status.starts, status.start_step, status.starts_without_progress = status.starts + 1, newest_step, without
    if without > max_restarts:
        status.state = "gave_up"
        status.reason = f"started {without + 1} times without a step that was saved"
    status.write(run_dir)
    if status.state == "gave_up":
        raise DistftError(
            f"cluster.max_restarts: {run_dir} {status.reason} (allowed {max_restarts}); read its logs/, then start it "
            "again by hand"
        )


def end(run_dir: Path, state: State, reason: str | None = None) -> None:
    """Notes how a start ended, unless something that says more was noted already."""
    status = Status.read(run_dir)
    if status.state not in ("hung", "unfit", "gave_up"):
        status.state, status.reason, status.seconds_left = state, reason, None
        status.write(run_dir)


def blame(run_dir: Path, state: Literal["hung", "unfit"], reason: str, nodes: list[str]) -> None:
    """Notes that nodes kept the run from going on. A rank may hang for its program's sake; a preflight is plain."""
    status = Status.read(run_dir)
    status.state, status.reason, status.seconds_left = state, reason, None
    for node in nodes:
        status.bad_nodes[node] = status.bad_nodes.get(node, 0) + (EXCLUDED_AT if state == "unfit" else 1)
    status.write(run_dir)
