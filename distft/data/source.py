"""Where rows come from: files, folders, installed packages, the hub. Every fault is named, all of them at once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from distft.config import schema
from distft.data.table import READERS, SUFFIXES, Columnar, Table, read_parquet
from distft.errors import ConfigError
from distft.runtime.location import locate


@dataclass(frozen=True)
class Part:
    """One table of one source: a file, the files of a folder that are read together, or a hub dataset."""

    key: str
    table: Table
    format: str
    weight: float


@dataclass(frozen=True)
class Resolved:
    """A source that is there, not yet read: enough to know whether its rows are in the cache."""

    key: str
    """The config key that names it, for messages."""
    source: schema.Source
    files: list[Path]
    """Empty: `hub` has the rows."""
    hub: Any
    digest: str
    """Identity of the content."""


def resolve(
    sources: str | Sequence[str | schema.Source], key: str, digest: Callable[[Path], str]
) -> tuple[list[Resolved], list[str]]:
    """Every source of one key that is there, and the problems of the others."""
    listed = schema.listed(sources)
    resolved = []
    problems = [] if listed else [f"{key}: must name at least one source, got an empty list"]
    for i, source in enumerate(listed):
        where = key if len(listed) == 1 else f"{key}[{i}]"
        try:
            path = locate(source.path, where)
            if path is None:
                hub = _load_from_hub(source, where)
                resolved.append(Resolved(where, source, [], hub, f"hub:{hub._fingerprint}"))
            else:
                files = _files(path, source.path, where)
                resolved.append(Resolved(where, source, files, None, " ".join(map(digest, files))))
        except ConfigError as error:
            problems += error.problems
    return resolved, problems


def open_parts(
    resolved: list[Resolved], format: str | None, formats: Mapping[str, tuple[str, ...]], scratch: Path
) -> tuple[list[Part], list[str]]:
    """The tables of these sources, and what is wrong with them. `scratch` takes what `datasets` has to unpack."""
    parts, problems = [], []
    for each in resolved:
        tables, faults = _tables(each, scratch)
        if not faults and not any(len(table) for table in tables):
            faults = [f"{each.key}: dataset must have rows, got an empty {each.source.path!r}"]
        for table in tables:
            try:
                if len(table):
                    chosen = _format(table, each.source.format or format, formats, each.key)
                    parts.append(Part(each.key, table.select(formats[chosen]), chosen, each.source.weight))
            except ConfigError as error:
                faults += error.problems
        problems += faults
    return parts, problems


def _files(path: Path, given: str, key: str) -> list[Path]:
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise ConfigError(f"{key}: file must be one of {', '.join(SUFFIXES)}, got {given!r}")
        return [path]
    found = (file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    files = sorted(f for f in found if not any(part.startswith(".") for part in f.relative_to(path).parts))
    if not files:
        names = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
        raise ConfigError(f"{key}: folder must hold {', '.join(SUFFIXES)} files, got {given!r} with {names}")
    return files


def _tables(each: Resolved, scratch: Path) -> tuple[list[Table], list[str]]:
    if not each.files:
        return [Columnar(f"{each.source.path} ({each.source.split})", each.hub)], []
    tables: list[Table] = []
    problems = []
    parquet = [file for file in each.files if file.suffix.lower() == ".parquet"]
    groups = [[file] for file in each.files if file not in set(parquet)] + ([parquet] if parquet else [])
    for files in groups:
        try:
            if files is parquet:
                tables.append(read_parquet(_name(files), files, scratch))
            else:
                tables.append(READERS[files[0].suffix.lower()](files[0]))
        except (ValueError, OSError, yaml.YAMLError) as error:
            kind = files[0].suffix[1:].upper()
            reason = " ".join(str(error).split())
            problems.append(f"{each.key}: file must be well-formed {kind}, got {_name(files)}; {reason}")
    return tables, problems


def _load_from_hub(source: schema.Source, key: str) -> Any:
    from datasets import load_dataset

    try:
        return load_dataset(source.path, source.subset, split=source.split)
    except Exception as error:  # the hub's client raises a dozen kinds: no such name, split, subset; gated; offline
        reason = " ".join(str(error).split())
        message = f"{key}: must be a local path or a dataset on the hub that can be read, got {source.path!r}"
        raise ConfigError(f"{message} (split {source.split!r}); {reason}") from error


def _format(table: Table, wanted: str | None, formats: Mapping[str, tuple[str, ...]], key: str) -> str:
    fitting = [format for format, columns in formats.items() if set(columns) <= set(table.columns)]
    if wanted is None and fitting:
        return fitting[0]
    # A JSON file whose first lines are broken has no columns to show: the lines themselves are named later.
    if wanted in fitting or (not table.columns and len(table)):
        return wanted or next(iter(formats))
    wants = "; ".join(f"{format} wants {', '.join(columns)}" for format, columns in formats.items())
    goal = f"data.format {wanted!r}" if wanted else "one of the formats"
    place = table.place(0).rpartition(", ")[0]
    raise ConfigError(f"{key}: columns must be those of {goal}, got {', '.join(table.columns)} in {place}; {wants}")


def _name(files: list[Path]) -> str:
    return str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
