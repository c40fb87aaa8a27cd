"""What a run forgot: its numbers on datasets that were learnt before, at its first evaluation and at its last."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distft.tracking import metrics
from distft.tracking.seam import Lines, Row

FILE = "forgetting.json"
SEPARATOR = "/"


def named(dataset: str, numbers: dict[str, float]) -> dict[str, float]:
    """Numbers as they stand in an evaluation's row beside those of the new data."""
    return {f"{dataset}{SEPARATOR}{name}": value for name, value in numbers.items()}


def changes(rows: Iterable[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """`before`, `after` and `change` of each number of each earlier dataset, from a run's rows."""
    evaluated = [row for row in rows if row["split"] == "eval"]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for key in dict.fromkeys(key for row in evaluated for key in row if SEPARATOR in key):
        values = [row[key] for row in evaluated if row.get(key) is not None]
        if len(values) > 1:
            dataset, _, name = key.partition(SEPARATOR)
            change = {"before": values[0], "after": values[-1], "change": values[-1] - values[0]}
            found.setdefault(dataset, {})[name] = change
    return found


def report(run: Path) -> Lines:
    """Writes `forgetting.json` into a run folder whose rows tell of earlier datasets; returns lines for its summary."""
    found: dict[str, Any] = changes(metrics.read(run / metrics.FILE))
    if not found:
        return []
    aside = run / f".{FILE}"
    aside.write_text(json.dumps(found, indent=2, ensure_ascii=False), encoding="utf-8")
    aside.replace(run / FILE)
    return [
        (
            f"earlier {dataset}",
            ", ".join(f"{name} {each['before']:.4f} -> {each['after']:.4f}" for name, each in numbers.items()),
        )
        for dataset, numbers in found.items()
    ]
