"""A request to stop: a flag that signals set and step boundaries read.

Nothing is saved inside a handler: a collective there, on one rank only, would deadlock the others.
"""

import os
import signal
from types import FrameType

from distft.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class StopFlag:
    """Set by SIGTERM, SIGINT or SIGUSR2 from `install` on; a second SIGINT ends the process at once."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def install(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal_name == "SIGINT":
            os._exit(128 + number)
        self.signal_name = signal.Signals(number).name

    @property
    def is_set(self) -> bool:
        return self.signal_name is not None

    def raise_if_set(self) -> None:
        """For the phases before the first step, which have nothing to save."""
        if self.is_set:
            raise Stopped(f"stopped by {self.signal_name} before the first step; run the same command to go on")
