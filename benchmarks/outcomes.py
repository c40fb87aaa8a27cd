"""Whole runs of the product, for benchmarks of what comes out rather than of how long it takes."""

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from distft.data.table import READERS
from distft.runtime.location import locate

DIALOGUES = "package://chatterbot_corpus/data/english"


def evaluations(overrides: list[str]) -> list[dict[str, Any]]:
    """Trains in a process of its own; the evaluation rows of `metrics.jsonl`, the one before training first."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["name=run", f"run_root={folder}", "engine=single", "evaluation.samples=0", *overrides]
        subprocess.run([sys.executable, "-m", "distft.train", *words], check=True, stdout=sys.stderr)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == "eval"]


def exchanges(most_characters: int, seed: int) -> list[tuple[str, str]]:
    """What is said first in the embedded dialogues and the reply to it, each first utterance once, shuffled."""
    folder = locate(DIALOGUES)
    assert folder is not None, "a package is on disk"
    said: dict[str, str] = {}
    for file in sorted(folder.glob("*.yml")):
        for row in READERS[".yml"](file).read(0, 10**6):
            assert isinstance(row, dict), "the corpus is well-formed"
            first, reply = (message["content"] for message in row["messages"][:2])
            if len(first) + len(reply) <= most_characters:
                said.setdefault(first, reply)
    pairs = list(said.items())
    random.Random(seed).shuffle(pairs)
    return pairs
