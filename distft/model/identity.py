"""Which base this is: its weights and what its config says of the computation, wherever it lies and under what name."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from distft.config import schema
from distft.runtime.location import choose, locate

SCHEME = "2:"
"""Before a digest, so that one of earlier code is known: that held file names, the folder's, and a version."""
NOT_COMPUTED = {
    *("_name_or_path", "_commit_hash", "transformers_version", "architectures", "use_cache", "dtype", "torch_dtype"),
    *("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "output_attentions"),
    *("output_hidden_states", "return_dict", "use_return_dict", "gradient_checkpointing"),
}
"""Entries of a config that say how it was kept or is run, not what the model computes."""
SAMPLED = 256 << 20  # bytes: smaller bases are read whole
SPOTS = 8
"""Places in each tensor of a larger one that are looked at."""


def identify(config: schema.Model, skeleton: PreTrainedModel, files: list[Path]) -> dict[str, Any]:
    """`source`, `revision` and `digest` of a base; `earlier` is the digest that earlier code gave it."""
    drawn = config.random_init is not None
    content = dict(config.random_init or {}) if drawn else _config_of(config, files)
    shape = {"config": _computed(content), "num_hidden_layers": config.num_hidden_layers}
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True, default=str).encode())
    total = sum(file.stat().st_size for file in files)
    for name, file, start, size in sorted(_extents(files), key=lambda extent: extent[0]):
        digest.update(f"{name} {size}".encode())
        with file.open("rb") as opened:
            for at, length in _spots(start, size, total):
                opened.seek(at)
                digest.update(opened.read(length))
    return {
        "source": "random_init" if drawn else choose(config.source),
        "revision": getattr(skeleton.config, "_commit_hash", None) or config.revision,
        "digest": SCHEME + digest.hexdigest(),
        "earlier": _earlier(skeleton, files),
    }


def _config_of(config: schema.Model, files: list[Path]) -> dict[str, Any]:
    """The config as it lies there: what is read of it has defaults that come and go with `transformers`."""
    source = choose(config.source)
    path = locate(source)
    if path is not None and path.is_file():
        return {}  # a .gguf file's is within it
    content, _ = PretrainedConfig.get_config_dict(str(path or source), revision=config.revision)
    return dict(content)


def _computed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _computed(each) for key, each in value.items() if key not in NOT_COMPUTED and each is not None}
    return value


def _extents(files: list[Path]) -> Iterator[tuple[str, Path, int, int]]:
    """Each tensor's name with dtype and shape, its file, and where its bytes begin and how many they are."""
    for file in files:
        if file.suffix != ".safetensors":
            yield "", file, 0, file.stat().st_size
            continue
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
        for name, tensor in header.items():
            if name != "__metadata__":
                start, stop = tensor["data_offsets"]
                yield f"{name} {tensor['dtype']} {tensor['shape']}", file, 8 + length + start, stop - start


def _spots(start: int, size: int, total: int) -> Iterator[tuple[int, int]]:
    """Where to read of a tensor, and how much: all of a small base, of a large one evenly spread pieces of each."""
    piece = max(1024, size * SAMPLED // max(total, 1) // SPOTS)
    if total <= SAMPLED or piece * SPOTS >= size:
        yield start, size
        return
    for spot in range(SPOTS):
        yield start + (size - piece) * spot // (SPOTS - 1), piece


def _earlier(skeleton: PreTrainedModel, files: list[Path]) -> str:
    digest = hashlib.sha256(skeleton.config.to_json_string(use_diff=False).encode())
    for file in files:
        with file.open("rb") as opened:
            digest.update(f"{file.name} {file.stat().st_size}".encode() + opened.read(1 << 20))
    return digest.hexdigest()
