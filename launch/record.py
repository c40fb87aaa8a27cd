"""job.json in a run folder: the job that was submitted for it, written by whoever submitted it."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

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
            return cls(**json.loads((run_dir / FILE).read_text()))
        except (OSError, ValueError, TypeError):
            return None


def write(run_dir: Path, job: str, cluster: str, log: Path) -> None:
    run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    (run_dir / CANCEL).unlink(missing_ok=True)
    (run_dir / FILE).write_text(json.dumps(asdict(Record(job, cluster, str(log), time.time()))))
