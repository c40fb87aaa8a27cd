"""job.json in a run folder: the job that was submitted for it, written by whoever submitted it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from distft.runtime.files import write_whole

FILE = "job.json"
CANCEL = "cancel"
"""A file of this name in a run folder says that its job is not to be requeued."""


@dataclass(frozen=True)
class Record:
    job: str
    cluster: str
    log: str
    submitted: float
    """Seconds since the epoch."""

    @classmethod
    def read(cls, run_dir: Path) -> "Record | None":
        try:
            return cls(**json.loads((run_dir / FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, run_dir: Path) -> None:
        """Makes the run folder where there is none; an earlier job's cancellation ends here."""
        run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        (run_dir / CANCEL).unlink(missing_ok=True)
        write_whole(run_dir / FILE, json.dumps(asdict(self)))
