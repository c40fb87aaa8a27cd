"""Tokenised documents, memory-mapped."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from distft.data.document import IGNORED, NEXT_TOKEN, Layout

DOCUMENT = np.dtype([("start", np.int64), ("length", np.int64), ("targets", np.int64)])
"""A document in a cache folder's `documents.npy`."""


@dataclass(frozen=True)
class Counts:
    """What became of the rows of one split."""

    rows: int
    duplicates: int
    truncated: int
    dropped: dict[str, int]
    """By reason."""
    replayed: int = 0
    """Of the rows that an epoch trains on, those of older data; a row that stands there twice counts twice."""


@dataclass(frozen=True)
class Corpus:
    """The documents of one split. One may stand in it twice or more, by its source's weight."""

    counts: Counts
    digest: str
    """Identity of the tokenised data: equal digests, equal documents in equal order."""
    lengths: np.ndarray
    """int64 [num_documents]: tokens."""
    target_counts: np.ndarray
    """int64 [num_documents]: what each counts in the loss's denominator."""
    starts: np.ndarray = field(repr=False)
    ids: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    """By `layout`: one a token, or `width` a document."""
    layout: Layout = NEXT_TOKEN
    index: np.ndarray | None = field(default=None, repr=False)
    """int64 [num_documents]: their numbers in the cache folder; null: as they stand."""
    folder: Path | None = None

    @property
    def num_documents(self) -> int:
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def num_targets(self) -> int:
        return int(self.target_counts.sum())

    def document(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """`input_ids`, int64 [L], and its targets.

        Under `next_token` these are int64 [L] and shifted already: `targets[t]` is the token after t if that one is
        supervised, else -100. Under `token` int64 [L], under `document` int64 or float32 [width].
        """
        start, stop = self.starts[i], self.starts[i] + self.lengths[i]
        ids = self.ids[start:stop].astype(np.int64)
        if self.layout.labels == "next_token":
            targets = np.full(len(ids), IGNORED, np.int64)
            np.copyto(targets[:-1], ids[1:], where=self.labels[start + 1 : stop])
            return ids, targets
        if self.layout.labels == "token":
            return ids, self.labels[start:stop].astype(np.int64)
        first = self._number(i) * self.layout.width
        labels = self.labels[first : first + self.layout.width]
        return ids, np.array(labels, np.float32) if self.layout.dtype == "float32" else labels.astype(np.int64)

    def segments(self, i: int) -> np.ndarray:
        """int64 [segments]: the lengths of the document's parts."""
        if self.layout.segments == 1:
            return self.lengths[i : i + 1]
        return self._segments[self._number(i)].astype(np.int64)

    @cached_property
    def rows(self) -> np.ndarray:
        """int64 [num_documents]: the row of the data that each document is of, as a number over all sources."""
        assert self.folder is not None
        return np.load(self.folder / "rows.npy", mmap_mode="r")[self.index]

    def by_row(self) -> list[list[int]]:
        """The documents of each row: the windows of a long text are several."""
        found: dict[int, list[int]] = {}
        for document, row in enumerate(self.rows.tolist()):
            found.setdefault(row, []).append(document)
        return list(found.values())

    def reference(self, i: int) -> Any:
        """What the task's metrics know of the row of a held-out document beside its labels."""
        assert self.folder is not None
        start, stop = self._references[self.rows[i]], self._references[self.rows[i] + 1]
        with (self.folder / "references.bin").open("rb") as file:
            file.seek(start)
            return json.loads(file.read(stop - start))

    @cached_property
    def _segments(self) -> np.ndarray:
        assert self.folder is not None
        return np.load(self.folder / "segments.npy", mmap_mode="r")

    @cached_property
    def _references(self) -> np.ndarray:
        assert self.folder is not None
        return np.load(self.folder / "references.npy", mmap_mode="r")

    def _number(self, i: int) -> int:
        return i if self.index is None else int(self.index[i])


def save_split(folder: Path, name: str, index: np.ndarray, counts: Counts, digest: str) -> None:
    """`index` int64 [num_documents]: which of the folder's documents, in which order."""
    np.save(folder / f"{name}.npy", index)
    text = json.dumps({"counts": vars(counts), "digest": digest}, indent=1)
    (folder / f"{name}.json").write_text(text, encoding="utf-8")


def load_split(folder: Path, name: str, layout: Layout) -> Corpus | None:
    """The documents of a split; None if the folder has no such split."""
    if not (folder / f"{name}.json").exists():
        return None
    info = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    index = np.load(folder / f"{name}.npy", mmap_mode="r")
    documents = np.load(folder / "documents.npy", mmap_mode="r")
    return Corpus(
        Counts(**info["counts"]),
        info["digest"],
        lengths=documents["length"][index],
        target_counts=documents["targets"][index],
        starts=documents["start"][index],
        ids=np.memmap(folder / "ids.bin", np.int32, mode="r"),
        labels=np.memmap(folder / "labels.bin", layout.dtype, mode="r"),
        layout=layout,
        index=index,
        folder=folder,
    )
