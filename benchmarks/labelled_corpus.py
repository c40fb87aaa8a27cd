"""Labelled rows of the chatterbot corpus for benchmarks: conversations by topic, and by language."""

import hashlib
import json
from pathlib import Path
from typing import Any

from distft.data.table import READERS
from distft.runtime.location import locate

TOPICS = ("tech_support", "trivia", "coding", "ai", "psychology", "emotion", "literature", "money")
"""The eight English files with the most conversations, by their categories."""
LANGUAGES = (
    "english",
    "persian",
    "japanese",
    "italian",
    "chinese",
    "ukrainian",
    "korean",
    "portuguese",
    "dutch",
    "spanish",
    "indonesian",
    "bengali",
    "german",
)
"""Those with more than a hundred conversations, each in one script."""

Rows = list[dict[str, Any]]


def topics(most: int) -> Rows:
    """Conversations as one text, at most `most` of a topic, none twice."""
    return [row for topic in TOPICS for row in _of([f"english/{topic}.yml"], topic, most)]


def languages(most: int) -> Rows:
    folder = _corpus()
    return [
        row
        for language in LANGUAGES
        for row in _of(
            [f"{language}/{file.name}" for file in sorted((folder / language).glob("*.yml"))], language, most
        )
    ]


def split(rows: Rows, share: float) -> tuple[Rows, Rows]:
    """Training rows and held-out rows, by a hash of the text."""
    held_out = [_hash(row["text"]) < share for row in rows]
    return (
        [row for row, out in zip(rows, held_out, strict=True) if not out],
        [row for row, out in zip(rows, held_out, strict=True) if out],
    )


def write(file: Path, rows: Rows) -> str:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def _of(files: list[str], label: str, most: int) -> Rows:
    texts: dict[str, None] = {}
    for file in files:
        table = READERS[".yml"](_corpus() / file)
        texts |= {
            row["text"]: None for row in table.read(0, len(table)) if isinstance(row, dict) and row["text"].strip()
        }
    chosen = sorted(texts, key=lambda text: _hash(f"choose {text}"))[:most]
    return [{"text": text, "label": label} for text in chosen]


def _hash(text: str) -> float:
    """Evenly in [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2.0**64


def _corpus() -> Path:
    folder = locate("package://chatterbot_corpus/data")
    assert folder is not None
    return folder
