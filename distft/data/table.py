"""Rows of one file, read lazily: JSON lines, JSON, YAML corpora, CSV, CoNLL, Parquet; and of a hub dataset."""

import json
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml

from distft.data.document import Malformed

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".yml", ".yaml", ".conll")
YAML = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # every scalar a string: an unquoted Yes stays "Yes"


class Table(Protocol):
    """Rows by position. `read` gives a Malformed in place of a row that cannot be read; `place` names a row;
    `select` leaves out columns that nobody wants, where that saves work."""

    @property
    def columns(self) -> list[str]: ...

    def __len__(self) -> int: ...
    def read(self, start: int, stop: int) -> Iterator[dict | Malformed]: ...
    def place(self, row: int) -> str: ...
    def select(self, columns: Sequence[str]) -> "Table": ...


@dataclass
class JsonLines:
    """A file of one JSON object a line. Keeps where lines start, not the lines."""

    path: Path
    version: tuple[int, int] = field(init=False)
    ends: np.ndarray = field(init=False)
    numbers: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        stat = self.path.stat()
        self.version = stat.st_size, stat.st_ino
        newlines = [np.flatnonzero(np.frombuffer(block, np.uint8) == 10) + at for at, block in _blocks(self.path)]
        self.ends = np.concatenate([[-1], *newlines, [stat.st_size]]).astype(np.int64)
        lengths = np.diff(self.ends) - 1
        # Blank lines are no rows; only short ones are looked at.
        filled = [n for n in np.flatnonzero((lengths > 0) & (lengths < 8)) if not self._line(int(n)).strip()]
        keep = lengths > 0
        keep[filled] = False
        self.numbers = np.flatnonzero(keep)

    def __len__(self) -> int:
        return len(self.numbers)

    @cached_property
    def columns(self) -> list[str]:
        rows = (row for row in self.read(0, min(len(self), 100)) if isinstance(row, dict))
        return list(dict.fromkeys(column for row in rows for column in row))

    def read(self, start: int, stop: int) -> Iterator[dict | Malformed]:
        for number in self.numbers[start:stop]:
            yield _parse(self._line(int(number)))

    def place(self, row: int) -> str:
        return f"{self.path}, line {self.numbers[row] + 1}"

    def select(self, columns: Sequence[str]) -> Table:
        return self

    def _line(self, number: int) -> bytes:
        return _mapped(self.path, self.version)[self.ends[number] + 1 : self.ends[number + 1]]


@dataclass
class Listed:
    """Rows that are in memory: a JSON array, a YAML corpus."""

    path: Path
    rows: list[Any]

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(column for row in self.rows[:100] if isinstance(row, dict) for column in row))

    def read(self, start: int, stop: int) -> Iterator[dict | Malformed]:
        for row in self.rows[start:stop]:
            yield row if isinstance(row, dict) else Malformed(f"must be an object, got {type(row).__name__}")

    def place(self, row: int) -> str:
        return f"{self.path}, row {row + 1}"

    def select(self, columns: Sequence[str]) -> Table:
        return self


@dataclass
class Columnar:
    """A memory-mapped `datasets.Dataset`: Parquet, CSV, the hub."""

    name: str
    data: Any

    def __len__(self) -> int:
        return len(self.data)

    @property
    def columns(self) -> list[str]:
        return self.data.column_names

    def read(self, start: int, stop: int) -> Iterator[dict | Malformed]:
        block = self.data[start:stop]
        for values in zip(*block.values(), strict=True):
            yield dict(zip(block, values, strict=True))

    def place(self, row: int) -> str:
        return f"{self.name}, row {row + 1}"

    def select(self, columns: Sequence[str]) -> Table:
        return Columnar(self.name, self.data.select_columns([c for c in self.columns if c in (*columns, "tools")]))


def _read_json(path: Path) -> Table:
    """A JSON array of objects; or, as many `.json` files are, JSON lines."""
    with path.open("rb") as file:
        is_array = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    return Listed(path, json.loads(path.read_bytes())) if is_array else JsonLines(path)


def _read_yaml(path: Path) -> Table:
    """A ChatterBot corpus: `conversations`, each a list of utterances that two sides take in turns.

    Each is a chat; also a text that is labelled by the corpus's first category; and a pair, of its last reply and the
    next one in the corpus that says something else.
    """
    corpus = yaml.load(path.read_bytes(), YAML)  # noqa: S506 (the base loader makes strings only)
    conversations = corpus.get("conversations") if isinstance(corpus, dict) else None
    if not isinstance(conversations, list):
        found = list(corpus) if isinstance(corpus, dict) else type(corpus).__name__
        raise ValueError(f"a YAML corpus has `conversations`, a list of lists of utterances; this one has {found}")
    categories = corpus.get("categories")
    label = {"label": categories[0]} if isinstance(categories, list) and categories else {}
    chats = [_messages(utterances) for utterances in conversations]
    pairs = _pairs(chats)
    return Listed(
        path,
        [
            {"messages": chat, "text": "\n".join(map(str, utterances)), **label, **pair}
            for utterances, chat, pair in zip(conversations, chats, pairs, strict=True)
        ],
    )


def _pairs(chats: list[list[dict]]) -> list[dict]:
    """Of each chat its last reply and that of the nearest later one (round the end) which says something else.

    Where a corpus is one chat, one of its own earlier replies.
    """
    replies = [chat[-1:] for chat in chats]
    pairs = []
    for i, chat in enumerate(chats):
        own = [[message] for message in chat[1:-1:2]]
        others = (reply for reply in replies[i + 1 :] + replies[:i] + own if reply and reply != replies[i])
        rejected = next(others, None) if chat else None
        pairs.append({} if rejected is None else {"prompt": chat[:-1], "chosen": replies[i], "rejected": rejected})
    return pairs


def _messages(utterances: list[Any]) -> list[dict]:
    said = [u if isinstance(u, str) else str(u) for u in utterances]
    answered = said[: len(said) - len(said) % 2]
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(answered)]


def _read_conll(path: Path) -> Table:
    """A CoNLL file: a word a line with its tag in the last column, an empty line after each sentence."""
    rows: list[dict[str, list[str]]] = [{"tokens": [], "tags": []}]
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        columns = line.split()
        if not columns or columns[0] == "-DOCSTART-":
            if rows[-1]["tokens"]:
                rows.append({"tokens": [], "tags": []})
            continue
        if columns[0] == "#" and not rows[-1]["tokens"]:  # a comment stands before its sentence
            continue
        if len(columns) < 2:
            raise ValueError(f"line {number} must be a word and its tag, got {line!r}")
        rows[-1]["tokens"].append(columns[0])
        rows[-1]["tags"].append(columns[-1])
    return Listed(path, [row for row in rows if row["tokens"]])


def _read_csv(path: Path) -> Table:
    """A CSV file with a header; every value a string, so that an answer of `4` or `NA` stays what it is."""
    import pyarrow.csv
    from datasets import Dataset

    with pyarrow.csv.open_csv(path) as reader:
        names = reader.schema.names
    strings = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pyarrow.string()), strings_can_be_null=False, quoted_strings_can_be_null=False
    )
    options = pyarrow.csv.ParseOptions(newlines_in_values=True)
    return Columnar(str(path), Dataset(pyarrow.csv.read_csv(path, parse_options=options, convert_options=strings)))


READERS = {
    ".jsonl": JsonLines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".yml": _read_yaml,
    ".yaml": _read_yaml,
    ".conll": _read_conll,
}


def read_parquet(name: str, files: list[Path], scratch: Path) -> Table:
    from datasets import Dataset, disable_progress_bars
    from datasets.exceptions import DatasetGenerationError

    disable_progress_bars()  # one a rank, in the middle of the console
    try:
        return Columnar(name, Dataset.from_parquet([str(file) for file in files], cache_dir=str(scratch)))
    except DatasetGenerationError as error:
        raise ValueError(str(error.__cause__ or error)) from error


def _parse(line: bytes) -> dict | Malformed:
    try:
        row = json.loads(line)
    except ValueError as error:  # a JSONDecodeError or a UnicodeDecodeError
        return Malformed(f"must be a JSON object: {error}")
    return row if isinstance(row, dict) else Malformed(f"must be a JSON object, got {type(row).__name__}")


def _blocks(path: Path, size: int = 1 << 24) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        at = 0
        while block := file.read(size):
            yield at, block
            at += len(block)


@lru_cache(maxsize=64)
def _mapped(path: Path, version: tuple[int, int]) -> mmap.mmap:
    """The file's bytes; `version` keeps the map of a file that has since grown or been replaced from being reused."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
