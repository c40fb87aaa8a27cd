"""One tracker of several: `metrics.jsonl`, the truth, must be written; a mirror that fails is switched off."""

import logging
import time

from distft.tracking.seam import Row, RunInfo, Summary, Tracker

logger = logging.getLogger(__name__)


class NullTracker:
    """Observes nothing: the tracker of every rank but the first."""

    def start(self, info: RunInfo) -> None:
        pass

    def log(self, row: Row) -> None:
        pass

    def close(self, summary: Summary) -> None:
        pass


class FanOut:
    """Hands every call to `truth`, whose errors are raised, then to each of `mirrors`, whose errors are survived."""

    def __init__(self, truth: Tracker, mirrors: dict[str, Tracker]):
        self.truth = truth
        self.mirrors = dict(mirrors)

    def start(self, info: RunInfo) -> None:
        self.truth.start(info)
        self._mirror("start", info)

    def log(self, row: Row) -> None:
        """Note one row; `time` is stamped here unless the row has one."""
        row = row if "time" in row else {**row, "time": time.time()}
        self.truth.log(row)
        self._mirror("log", row)

    def close(self, summary: Summary) -> None:
        self.truth.close(summary)
        self._mirror("close", summary)

    def _mirror(self, verb: str, argument: RunInfo | Row | Summary) -> None:
        for name, mirror in list(self.mirrors.items()):
            try:
                getattr(mirror, verb)(argument)
            except Exception as error:  # whatever a third-party client raises: the run outlives its mirrors
                del self.mirrors[name]
                reason = f"{type(error).__name__}: {error}".partition("\n")[0]
                logger.warning("%s is switched off, the run goes on without it (%s)", name, reason)
                logger.debug("%s failed in %s", name, verb, exc_info=True)
