"""The files that a base's weights lie in: of a folder, of the hub, or the one `.gguf`."""

import json
from pathlib import Path

from distft.config import schema
from distft.errors import ConfigError
from distft.runtime.location import choose, locate


def weight_files(config: schema.Model) -> list[Path]:
    """The files of `config.source`, fetched from the hub if need be; none for drawn weights. Raises ConfigError."""
    if config.random_init is not None:
        return []
    source = choose(config.source)
    path = locate(source)
    if path is not None and path.is_file():
        return [path]
    return safetensors_in(_download(source, config.revision) if path is None else path, source)


def safetensors_in(path: Path, source: str) -> list[Path]:
    """The files of a folder's weights: as `transformers` has it, one `model.safetensors` comes before an index.

    `save_pretrained` over a sharded folder leaves the index of what was there. Raises ConfigError where files are not
    there.
    """
    files = sorted(path.glob("*.safetensors"))
    whole, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if whole.exists():
        files = [whole]
    elif index.exists():  # a folder may hold the same weights twice, as Mistral's do
        files = sorted({path / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    absent = [file.name for file in files if not file.exists()]
    if not files or absent:
        found = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
        raise ConfigError(
            f"model.source: folder must hold the model's weights as *.safetensors, got {source!r} with "
            f"{'missing ' + ', '.join(absent[:3]) if absent else found}; save it with save_pretrained()"
        )
    return files


def _download(source: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=["*.safetensors", "*.json"]))
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ConfigError(
            f"model.source: must be on the hub or on disk, got {source!r} ({str(error).splitlines()[0]}); "
            "check the name and the network, or log in if the model is gated"
        ) from error
