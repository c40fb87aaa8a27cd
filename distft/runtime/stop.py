"""A request to stop: a flag that signals and the job's time limit set, and step boundaries read.

Nothing is saved inside a handler: a collective there, on one rank only, would deadlock the others.
"""

import os
import signal
import time
from types import FrameType
from typing import TYPE_CHECKING

from distft.errors import Stopped

if TYPE_CHECKING:
    from distft.runtime.group import Group

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class StopFlag:
    """Set by SIGTERM, SIGINT or SIGUSR2 from `install` on (a second SIGINT ends the process at once), and by the clock.

    `ends_at`: seconds since the epoch at which the job is killed. The flag is up `reserve_s` before: the time that one
    more step and a save take, which only the loop knows.
    """

    def __init__(self, ends_at: float | None = None) -> None:
        self.signal_name: str | None = None
        self.ends_at = ends_at
        self.reserve_s = 0.0

    def install(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal_name == "SIGINT":
            os._exit(128 + number)
        self.signal_name = signal.Signals(number).name

    @property
    def reason(self) -> str | None:
        """Why to stop; None: go on."""
        if self.signal_name is not None:
            return self.signal_name
        if self.ends_at is not None and time.time() > self.ends_at - self.reserve_s:
            return "the job's time limit"
        return None

    @property
    def is_set(self) -> bool:
        return self.reason is not None

    def raise_if_set(self) -> None:
        """For the phases before the first step, which have nothing to save, and in which ranks don't wait."""
        if self.is_set:
            raise _stopped_early(self.reason)

    def raise_if_any(self, group: "Group") -> None:
        """Likewise, agreed by all ranks, which must all call it."""
        if group.any(self.is_set):
            raise _stopped_early(self.reason)


def _stopped_early(reason: str | None) -> Stopped:
    return Stopped(f"stopped by {reason or 'another rank'} before the first step; run the same command to go on")
