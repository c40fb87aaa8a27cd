"""The tokenizer of a model: from the hub, a folder or a GGUF file."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from distft.config import schema
from distft.errors import ConfigError
from distft.model import gguf
from distft.runtime.location import choose, locate


def load_tokenizer(
    model: schema.Model, chat_template: str | None = None, key: str = "model"
) -> PreTrainedTokenizerFast:
    """The tokenizer behind `model.source`, with `chat_template` (a Jinja file) in place of its own template.

    A tokenizer without a padding token pads with its end-of-sequence token. Raises ConfigError.
    """
    source = choose(model.source, f"{key}.source")
    path = locate(source, f"{key}.source")
    options: dict[str, Any] = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    if path is not None and path.suffix == ".gguf":
        name, options = str(gguf.header_folder(path)), {}
    else:
        name = str(path or source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"{key}.source: must have a tokenizer, got {source!r}; {reason}") from error
    if not tokenizer.is_fast:
        raise ConfigError(f"{key}.source: tokenizer must be a fast one (tokenizer.json), got {source!r}")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if chat_template is not None:
        tokenizer.chat_template = read_chat_template(chat_template)
    return tokenizer


def read_chat_template(file: str) -> str:
    """The text of `data.chat_template`."""
    path = locate(file, "data.chat_template")
    if path is None or not path.is_file():
        raise ConfigError(f"data.chat_template: must be a Jinja file, got {file!r}")
    return Path(path).read_text(encoding="utf-8")
