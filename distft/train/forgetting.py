"""What a run forgot: its numbers on datasets that were learnt before, at its first evaluation and at its last."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from distft.runtime.files import write_whole
from distft.tracking.seam import Lines, Row

FILE = "forgetting.json"
SEPARATOR = "/"


@dataclass(frozen=True)
class Change:
    """One number before and after a run."""

    before: float
    after: float
    change: float


@dataclass(frozen=True)
class Forgetting:
    datasets: dict[str, dict[str, Change]]
    """By dataset and the number's name."""

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "Forgetting":
        """From a run's rows."""
        evaluated = [row for row in rows if row["split"] == "eval"]
        found: dict[str, dict[str, Change]] = {}
        for key in dict.fromkeys(key for row in evaluated for key in row if SEPARATOR in key):
            values = [row[key] for row in evaluated if row.get(key) is not None]
            if len(values) > 1:
                dataset, _, name = key.partition(SEPARATOR)
                found.setdefault(dataset, {})[name] = Change(values[0], values[-1], values[-1] - values[0])
        return cls(found)

    def write(self, run: Path) -> None:
        """`forgetting.json` into the run folder."""
        write_whole(run / FILE, json.dumps(asdict(self)["datasets"], indent=2, ensure_ascii=False))

    def lines(self) -> Lines:
        """For the run's summary."""
        return [
            (
                f"earlier {dataset}",
                ", ".join(f"{name} {each.before:.4f} -> {each.after:.4f}" for name, each in numbers.items()),
            )
            for dataset, numbers in self.datasets.items()
        ]


def named(dataset: str, numbers: dict[str, float]) -> dict[str, float]:
    """Numbers as they stand in an evaluation's row beside those of the new data."""
    return {f"{dataset}{SEPARATOR}{name}": value for name, value in numbers.items()}
