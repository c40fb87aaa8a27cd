"""What every part of the config is: a typed section. Imports neither torch nor Hydra."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from distft.errors import ConfigError

Fraction = Annotated[float, Field(ge=0, lt=1)]

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Section(BaseModel):
    """A part of the config: immutable, and refusing keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True)

    def problems(self) -> Iterator[str]:
        """What its own keys have against each other, in sentences."""
        yield from ()

    def missing(self) -> Iterator[str]:
        """What of it is not on this machine."""
        yield from ()


def with_control_characters(texts: Iterable[str]) -> list[str]:
    """The texts that hold control characters."""
    return [text for text in texts if _CONTROL.search(text)]


def problems_of(find: Callable[[Any, str], Any], source: Any, key: str) -> list[str]:
    """What `find` has against the `source` that stands at `key`."""
    try:
        find(source, key)
    except ConfigError as error:
        return error.problems
    return []
