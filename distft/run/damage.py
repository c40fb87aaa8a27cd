"""A checkpoint's manifest: size and hash of each of its files. What differs from it is damaged."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict

from distft.runtime.files import fsync

MANIFEST = "manifest.json"


class Entry(TypedDict):
    """What the manifest says of a file."""

    size: int
    sha256: str


def manifest_entry(file: Path) -> Entry:
    """What the manifest says of a file, which outlasts a crash of the machine from here on."""
    fsync(file)
    return {"size": file.stat().st_size, "sha256": _sha256(file)}


def damage(path: Path) -> list[str]:
    """What is wrong with a checkpoint: files that the manifest lists but that are missing or changed."""
    try:
        entries = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
        listed = {name: (entry["size"], entry["sha256"]) for name, entry in entries.items()}
    except FileNotFoundError:
        return [f"{MANIFEST} is missing"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{MANIFEST} cannot be read: {error!r}"]
    if "state.json" not in listed:
        return [f"{MANIFEST} lists no state.json"]

    def check(item: tuple[str, tuple[int, str]]) -> str | None:
        name, (size, sha256) = item
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes in place of {size}"
        return None if _sha256(file) == sha256 else f"{name} has another content than was written"

    with ThreadPoolExecutor(8) as pool:
        return [problem for problem in pool.map(check, listed.items()) if problem]


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
