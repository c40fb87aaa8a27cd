"""What a run tells its observers: `start` once, `log` a row, `close` once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

Row = dict[str, Any]
"""One line of metrics.jsonl: `step` (optimizer steps done), `split` ("train" or "eval"), and numbers by name."""

Lines = list[tuple[str, str]]
"""Lines of a plan or a summary: (label, text)."""


@dataclass(frozen=True)
class RunInfo:
    """What is known of a run before its first step."""

    name: str
    run_dir: Path
    run_id: str
    """Identity of the run on mirrors outside the run folder: the same after every restart."""
    plan: Lines
    num_steps: int
    first_step: int = 0
    """Steps that are done: 0 for a fresh run, N when it goes on from the checkpoint of step N."""
    config: dict[str, Any] = field(default_factory=dict)
    world_size: int = 1


@dataclass(frozen=True)
class Sample:
    """A held-out prompt, its reply in the data (if any), and the model's replies before and after training."""

    prompt: str
    reference: str | None
    before: str
    after: str


@dataclass(frozen=True)
class Summary:
    """How a run ended. Losses before and after are not in it: observers read them from the rows."""

    status: Literal["finished", "stopped", "failed"]
    lines: Lines = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    next_commands: list[str] = field(default_factory=list)


class Tracker(Protocol):
    """An observer of a run's rows."""

    def start(self, info: RunInfo) -> None: ...

    def log(self, row: Row) -> None: ...

    def close(self, summary: Summary) -> None: ...
