"""metrics.jsonl: one JSON object a line, the truth about a run."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from distft.errors import DistftError
from distft.runtime.files import write_whole
from distft.tracking.seam import Lines, Row, RunInfo, Summary

FILE = "metrics.jsonl"


class MetricsFile:
    """Appends each row to `<run>/metrics.jsonl`, flushed, so that a killed process loses at most the row in hand.

    `start` cuts the rows after `first_step`: a resumed run does those steps again, and each step stands once.
    """

    def __init__(self) -> None:
        self._file: TextIO | None = None
        self._standing: set[tuple[str, int]] = set()

    def start(self, info: RunInfo) -> None:
        path = info.run_dir / FILE
        try:
            rows = list(read(path, last_step=info.first_step)) if info.first_step else []
            write_whole(path, "".join(map(encode, rows)))
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise _unwritable(path, error) from error
        self._standing = {(row["split"], row["step"]) for row in rows}

    def log(self, row: Row) -> None:
        assert self._file is not None, "log before start"
        place = (row["split"], row["step"])
        if place in self._standing:  # evaluated before the kill, and again after the resume: the same numbers
            return
        try:
            self._file.write(encode(row))
            self._file.flush()
        except OSError as error:
            raise _unwritable(Path(self._file.name), error) from error
        self._standing.add(place)

    def close(self, summary: Summary) -> None:
        if self._file is not None:
            self._file.close()


def encode(row: Row) -> str:
    """The row as one line of strict JSON: NaN and infinity, which JSON has not, become null."""
    return json.dumps({key: _plain(value) for key, value in row.items()}, allow_nan=False) + "\n"


def read(path: Path, last_step: int | None = None) -> Iterator[Row]:
    """The rows of a metrics.jsonl up to `last_step`, each (split, step) once; none if there is no file.

    A line that is not a row is skipped: a kill in the middle of a write leaves a torn one.
    """
    if not path.exists():
        return
    seen: set[tuple[str, int]] = set()
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                row = json.loads(line)
                place = (row["split"], row["step"])
            except (ValueError, TypeError, KeyError):
                continue
            if place not in seen and (last_step is None or row["step"] <= last_step):
                seen.add(place)
                yield row


def outcome(rows: list[Row]) -> Lines:
    """What the evaluation rows say of the run: held-out loss before and after, and the best step."""
    losses = [(row["step"], row["loss"]) for row in rows if row["split"] == "eval" and row.get("loss") is not None]
    if not losses:
        return []
    (_, before), (last, after) = losses[0], losses[-1]
    best, lowest = min(losses, key=lambda pair: pair[1])
    if len(losses) == 1:
        return [("eval loss", f"{after:.4f} at step {last}")]
    change = f" ({100 * (after / before - 1):+.1f} %)" if before else ""
    return [("eval loss", f"{before:.4f} -> {after:.4f}{change}"), ("best step", f"{best} (eval loss {lowest:.4f})")]


def _plain(value: Any) -> Any:
    """A Python scalar of a tensor's or an array's only element; None where it is not finite."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _unwritable(path: Path, error: OSError) -> DistftError:
    return DistftError(
        f"{path}: must be writable, got {error.strerror or error}; free space or choose another run_root"
    )
