"""Checks within a section that names a model: the run's own, or a teacher. Imports no torch."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from distft.config.keys import show
from distft.config.sections.model import Model
from distft.errors import ConfigError
from distft.runtime.location import choose

CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def model_problems(model: Model, key: str) -> Iterator[str]:
    given = [model.source] if isinstance(model.source, str) else model.source
    if not given or not all(source.strip() for source in given):
        yield f"{key}.source: must name a model, got {show(model.source)}; give a hub id, a folder or a .gguf file"
    yield from (f"{key}.source: must hold no control characters, got {source!r}; rename it" for source in odd(given))
    if model.trust_remote_code and not _COMMIT.fullmatch(model.revision or ""):
        yield (
            f"{key}.trust_remote_code: must have {key}.revision pinned to a commit (40 hex digits), "
            f"got {show(model.revision)}; "
            f"give {key}.revision=COMMIT, or {key}.trust_remote_code=false"
        )
    if model.random_init is not None and "model_type" not in model.random_init:
        yield f"{key}.random_init: must name a model_type, got none; give {key}.random_init.model_type=llama"


def missing_model(model: Model, key: str) -> Iterator[str]:
    """What this machine lacks of it."""
    if model.source:
        yield from problems_of(choose, model.source, f"{key}.source")


def odd(texts: Iterable[str]) -> list[str]:
    """Those with control characters."""
    return [text for text in texts if CONTROL.search(text)]


def problems_of(find: Callable[[Any, str], Any], source: Any, key: str) -> list[str]:
    try:
        find(source, key)
    except ConfigError as error:
        return error.problems
    return []
