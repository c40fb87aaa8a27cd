"""The Hugging Face config of a base: its shape, before any weight is read."""

from typing import Any

from transformers import AutoConfig

from distft.config import schema
from distft.errors import ConfigError
from distft.model import gguf
from distft.runtime.location import choose, locate


def read_hf_config(config: schema.Model, key: str = "model") -> Any:
    """The Hugging Face config of `model.source` (or of `model.random_init`). Raises ConfigError if there is none."""
    found = _read_hf_config(config, key)
    wanted = config.num_hidden_layers
    if wanted is not None:
        if wanted > found.num_hidden_layers:
            raise ConfigError(
                f"{key}.num_hidden_layers: must be at most the {found.num_hidden_layers} of the model, got {wanted}; "
                f"set {key}.num_hidden_layers=null for all"
            )
        if getattr(found, "layer_types", None):
            found.layer_types = found.layer_types[:wanted]
        found.num_hidden_layers = wanted
    return found


def _read_hf_config(config: schema.Model, key: str) -> Any:
    if config.random_init is not None:
        settings = dict(config.random_init)
        return AutoConfig.for_model(settings.pop("model_type"), **settings)
    source = choose(config.source)
    path = locate(source)
    remote = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    try:
        if path is not None and path.is_file():
            return AutoConfig.from_pretrained(gguf.header_folder(path))
        return AutoConfig.from_pretrained(str(path or source), **remote)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{key}.source: must be a model's folder, a .gguf file, or a hub id, got {source!r} ({first}); "
            "check the path, or log in to the hub if the model is gated"
        ) from error
