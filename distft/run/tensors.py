"""The tensors of a checkpoint: written so that they last, read one at a time, from one file or several."""

import json
from collections.abc import Iterable
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from distft.errors import ConfigError
from distft.run.damage import Entry, manifest_entry


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

    def index(self) -> str:
        """Which tensor is in which file, as `transformers` writes it beside several."""
        return json.dumps({"metadata": {}, "weight_map": {name: f.name for name, f in self._files.items()}}, indent=1)


def open_weights(folder: Path, stem: str, trains: Iterable[str], beside: Iterable[str] = ()) -> TensorFolder:
    """The tensors in `folder`. Raises ConfigError where they are not those that train, with those `beside` them."""
    tensors = TensorFolder(folder, stem)
    if differing := sorted(set(tensors.names) ^ {*trains, *beside}):
        raise ConfigError(
            f"checkpoint: {folder} must hold exactly the parameters that the run trains, {len(differing)} differ: "
            f"{', '.join(differing[:3])}; it belongs to another run, or is incomplete"
        )
    return tensors


def file_name(part: str, writer: int, writers: int) -> str:
    return f"{part}.safetensors" if writers == 1 else f"{part}-{writer + 1:05d}-of-{writers:05d}.safetensors"


def write_tensors(file: Path, tensors: dict[str, Tensor]) -> dict[str, Entry]:
    """Writes a file and opens it again; returns its line of the manifest."""
    save_file(tensors, file, metadata={"format": "pt"})
    written = {file.name: manifest_entry(file)}
    with safe_open(file, "pt") as opened:  # an empty or partial file must not pass for a checkpoint
        shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    if shapes != {name: tuple(tensor.shape) for name, tensor in tensors.items()}:
        raise OSError(f"{file} does not hold what was written to it")
    return written
