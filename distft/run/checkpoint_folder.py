"""A checkpoint's folder: files written so that they last, read tensor by tensor, checked against the manifest."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

MANIFEST = "manifest.json"
PREFIX = "step-"


class TensorFolder:
    """The tensors `part` of a checkpoint, in one file or several, read one at a time."""

    def __init__(self, path: Path, part: str):
        self._files: dict[str, Path] = {}
        for file in sorted([*path.glob(f"{part}.safetensors"), *path.glob(f"{part}-*.safetensors")]):
            with safe_open(file, "pt") as opened:
                self._files.update(dict.fromkeys(opened.keys(), file))

    @property
    def names(self) -> list[str]:
        return list(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        with safe_open(self._files[name], "pt") as opened:
            return tuple(opened.get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        with safe_open(self._files[name], "pt") as opened:
            return opened.get_tensor(name).clone()


def published(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit())


def step_of(path: Path) -> int:
    return int(path.name.removeprefix(PREFIX))


def damage(path: Path) -> list[str]:
    """What is wrong with a checkpoint: files that the manifest lists but that are missing or changed."""
    try:
        entries = json.loads((path / MANIFEST).read_text())["files"]
        listed = {name: (entry["size"], entry["sha256"]) for name, entry in entries.items()}
    except FileNotFoundError:
        return [f"{MANIFEST} is missing"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{MANIFEST} cannot be read: {error!r}"]
    if "state.json" not in listed:
        return [f"{MANIFEST} lists no state.json"]

    def check(item: tuple[str, Any]) -> str | None:
        name, (size, sha256) = item
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes in place of {size}"
        return None if _sha256(file) == sha256 else f"{name} has another content than was written"

    with ThreadPoolExecutor(8) as pool:
        return [problem for problem in pool.map(check, listed.items()) if problem]


def read_state(path: Path) -> dict[str, Any]:
    """A checkpoint's `state.json`."""
    state: dict[str, Any] = json.loads((path / "state.json").read_text())
    return state


def set_aside(path: Path, why: str) -> Path:
    """Renames a checkpoint so that it is none any more; nothing is deleted."""
    names = (f"{why}-{path.name}{f'.{number}' if number else ''}" for number in count())
    aside = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    path.rename(aside)
    return aside


def folder_name(step: int) -> str:
    return f"{PREFIX}{step:08d}"


def file_name(part: str, writer: int, writers: int) -> str:
    return f"{part}.safetensors" if writers == 1 else f"{part}-{writer + 1:05d}-of-{writers:05d}.safetensors"


def write_tensors(file: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    save_file(tensors, file, metadata={"format": "pt"})
    _fsync(file)
    with safe_open(file, "pt") as opened:  # an empty or partial file must not pass for a checkpoint
        shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    if shapes != {name: tuple(tensor.shape) for name, tensor in tensors.items()}:
        raise OSError(f"{file} does not hold what was written to it")
    return {file.name: {"size": file.stat().st_size, "sha256": _sha256(file)}}


def index_of(folder: Path, part: str) -> str:
    tensors = TensorFolder(folder, part)
    return json.dumps({"metadata": {}, "weight_map": {name: f.name for name, f in tensors._files.items()}}, indent=1)


def write_file(file: Path, content: bytes) -> dict[str, Any]:
    file.write_bytes(content)
    _fsync(file)
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _fsync(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
