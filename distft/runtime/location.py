"""Where a source is: a local path, a file inside an installed package, or the hub."""

import difflib
import importlib.util
from pathlib import Path

from distft.errors import ConfigError

PACKAGE = "package://"
_FILE_SUFFIXES = {
    ".bin",
    ".csv",
    ".gguf",
    ".jinja",
    ".json",
    ".jsonl",
    ".parquet",
    ".safetensors",
    ".txt",
    ".yaml",
    ".yml",
}


def locate(source: str, key: str = "source") -> Path | None:
    """The path behind `source`; None: a hub id.

    Raises ConfigError, with `key` in the sentence, for a `package://` that is not installed, and for a path that
    does not exist and cannot be a hub id (`owner/name` or `name`, without a file's suffix).
    """
    if source.startswith(PACKAGE):
        return _locate_in_package(source, key)
    path = Path(source).expanduser()
    if path.exists():
        return path.absolute()  # not resolved: the hub's cache links names to blobs without a suffix
    if _could_be_hub_id(source):
        return None
    raise ConfigError(f"{key}: path must exist, got {source!r}; {_nearest(path)}")


def choose(sources: str | list[str], key: str = "source") -> str:
    """The first source that is there; a hub id counts as there."""
    problems = []
    for source in [sources] if isinstance(sources, str) else sources:
        try:
            locate(source, key)
        except ConfigError as error:
            problems += error.problems
        else:
            return source
    raise ConfigError(problems or f"{key}: must name at least one source, got an empty list")


def _locate_in_package(source: str, key: str) -> Path:
    package, _, name = source.removeprefix(PACKAGE).partition("/")
    # find_spec of a top-level name does not run the package, whose own imports may be missing here.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"{key}: package {package!r} of {source!r} must be installed; pip install {package}")
    candidates = [Path(folder) / name for folder in spec.submodule_search_locations]
    found = next((path for path in candidates if path.exists()), None)
    if found is None:
        raise ConfigError(f"{key}: package {package!r} must hold {name!r}; {_nearest(candidates[0])}")
    return found


def _could_be_hub_id(source: str) -> bool:
    parts = source.split("/")
    is_path = source.startswith((".", "~")) or len(parts) > 2 or not all(parts)
    return not is_path and Path(source).suffix.lower() not in _FILE_SUFFIXES


def _nearest(path: Path) -> str:
    """What to tell about a missing path: the nearest names in its folder, or the first folder that is missing."""
    folder = path.parent
    while not folder.is_dir():
        path, folder = folder, folder.parent
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5) or names[:5]
    listed = ", ".join(near) if near else "nothing"
    return f"{path.name!r} is not in {str(folder.absolute())!r}, which holds {listed}" + (
        " and more" if len(names) > len(near) else ""
    )
