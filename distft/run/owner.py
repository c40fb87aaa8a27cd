"""Who owns a run folder: one process at a time, told by its job, its process and its heartbeat.

No file lock: not every shared file system has them, and a node that is cut off keeps its own. An owner that was taken
over finds so at its next heartbeat and ends (a cut-off node's ranks run on after Slurm has given up on them).
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from distft.errors import EXIT_FAILED, ConfigError
from distft.runtime import slurm
from distft.runtime.env import Job
from distft.runtime.files import write_whole

FILE = "owner.json"
BEAT_S = 2.0
STALE_S = 60.0
"""Without a heartbeat for so long an owner counts as dead."""
FENCE_S = 3 * BEAT_S
"""How long a new owner waits for one whose heart still beats to find that it is none any more."""


@dataclass(frozen=True)
class Card:
    """The owner as it stands in the run folder."""

    host: str
    pid: int
    job: str | None
    since: str
    token: str
    """Of this owner alone: one that is taken over from finds another."""
    process: str | None
    released: bool = False

    @classmethod
    def read(cls, run_dir: Path) -> "Card | None":
        """None where there is none, or none that can be read."""
        try:
            saved = json.loads((run_dir / FILE).read_text(encoding="utf-8"))
            return cls(**{part.name: saved[part.name] for part in fields(cls) if part.name in saved})
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def describe(self) -> str:
        job = f"job {self.job}, " if self.job else ""
        return f"{job}process {self.pid} on {self.host}, started {self.since}"

    def is_here(self) -> bool:
        """Whether its process would be seen from here."""
        here, there = str(_process(os.getpid())).split(), str(self.process).split()
        return here[:2] == there[:2]

    def is_here_and_alive(self) -> bool:
        """Whether its process runs, and can be reached by a signal from here."""
        return self.is_here() and self.process == _process(self.pid)

    def seems_alive(self, run_dir: Path) -> bool:
        """Whether its process runs: seen from here, or by a heartbeat."""
        if self.released:
            return False
        if self.is_here():
            return self.is_here_and_alive()
        return time.time() - (run_dir / FILE).stat().st_mtime < STALE_S


class Owner:
    """This process as the owner of `run_dir`, from `claim` to `release`."""

    def __init__(self, run_dir: Path, job: Job | None):
        self.file = run_dir / FILE
        self.run_dir = run_dir
        self.card = Card(
            host=socket.gethostname(),
            pid=os.getpid(),
            job=job.id if job else None,
            since=time.strftime("%Y-%m-%d %H:%M:%S"),
            token=uuid.uuid4().hex,
            process=_process(os.getpid()),
        )
        self._released = threading.Event()

    def other(self) -> Card | None:
        """The card of another owner that is alive; None: the folder is free."""
        owner = Card.read(self.run_dir)
        return owner if owner is not None and not owner.released and self._is_alive(owner) else None

    def claim(self) -> str | None:
        """Takes the folder. Returns a sentence about a dead owner that it was taken from, if there was one.

        Raises ConfigError naming the owner, if there is one alive.
        """
        with _alone(self.run_dir):
            if (other := self.other()) is not None:
                raise ConfigError(
                    f"name: run folder must have one owner, {self.run_dir} belongs to {other.describe()}; "
                    "wait for it to end, or give another name="
                )
            dead = Card.read(self.run_dir)
            dead = None if dead is None or dead.released else dead
            maybe_beats = dead is not None and not dead.is_here() and self._age() < STALE_S
            self._write(self.card)
        if maybe_beats:  # on a node that Slurm has given up on: until it finds that it is none any more
            time.sleep(FENCE_S)
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        return f"the run folder is taken over from {dead.describe()}, which is gone" if dead else None

    def is_mine(self) -> bool:
        owner = Card.read(self.run_dir)
        return owner is not None and owner.token == self.card.token

    def release(self) -> None:
        """Tells others at once that this process is done with the folder."""
        self._released.set()
        if self.is_mine():
            self._write(replace(self.card, released=True))

    def _beat(self) -> None:
        while not self._released.wait(BEAT_S):
            with contextlib.suppress(OSError):  # a file system that hangs or is full is the loop's to report
                if not self.is_mine():
                    print(f"error: {self.run_dir} has another owner now: this process ends", flush=True)
                    os._exit(EXIT_FAILED)
                os.utime(self.file)

    def _is_alive(self, owner: Card) -> bool:
        if owner.is_here():
            return owner.is_here_and_alive()
        if owner.job is not None:
            if owner.job == self.card.job:  # this job's last incarnation: Slurm has given up on it
                return False
            state = slurm.job_state(owner.job)
            if state is not None:
                return state in slurm.HOLDS_NODES
        return self._age() < STALE_S

    def _age(self) -> float:
        """Seconds since the owner's last heartbeat, both by the file server's clock."""
        now = self.run_dir / ".now"
        now.touch()
        os.utime(now)
        return now.stat().st_mtime - self.file.stat().st_mtime

    def _write(self, card: Card) -> None:
        write_whole(self.file, json.dumps(asdict(card)))


def _process(pid: int) -> str | None:
    """What no other process ever has: boot, process namespace, id and start time; None: there is no such process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] == "Z" else f"{boot} {Path('/proc/self/ns/pid').readlink()} {pid} {fields[19]}"
    except OSError:
        return None


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two starts at the same instant go one after the other, where the file system has locks."""
    descriptor = os.open(folder / ".claim", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
