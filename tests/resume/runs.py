"""What a run left behind."""

import hashlib
import json
from pathlib import Path
from typing import Any

SAME = ("step", "split", "loss", "grad_norm", "lr", "tokens", "target_tokens")
"""What a row says of the training, and not of the machine."""


def rows(run: Path, split: str | None = None) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    kept = [json.loads(line) for line in lines]
    return [{key: row[key] for key in SAME if key in row} for row in kept if split in (None, row["split"])]


def adapter(run: Path, name: str = "adapter_model.safetensors") -> str:
    return hashlib.sha256((run / "adapter" / name).read_bytes()).hexdigest()


def steps(run: Path) -> list[int]:
    """The steps of the published checkpoints."""
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))


def log(run: Path, rank: int = 0) -> str:
    return (run / "logs" / f"rank-{rank:05d}.log").read_text()
