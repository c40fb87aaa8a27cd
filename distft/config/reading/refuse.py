"""What no config may hold: secrets, and names of Python objects to call."""

import re
from collections.abc import Iterator
from typing import Any

_SECRET = re.compile(r"(^|_)(token|secret|password|passwd|api_?key|credentials?)$", re.IGNORECASE)
_INSTANTIATE = re.compile(r"^_[a-z]+_$")


def looks_secret(key: str) -> bool:
    return _SECRET.search(key.split(".")[-1]) is not None


def take_refused(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Remove what is not set (`???`), and what no config may hold; a sentence for each of the latter."""
    for key in list(tree):
        path, value = f"{prefix}{key}", tree[key]
        if looks_secret(str(key)):
            yield secret(path)
            del tree[key]
        elif _INSTANTIATE.match(str(key)):
            yield f"{path}: must not be there, a config names no Python objects; remove it"
            del tree[key]
        elif value == "???":
            del tree[key]
        else:
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, dict):
                    yield from take_refused(item, f"{path}.")


def secret(path: str) -> str:
    return f"{path}: must not be in a config, it looks like a secret; take it from the environment (as HF_TOKEN is)"
