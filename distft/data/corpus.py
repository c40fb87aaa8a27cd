"""Tokenised documents, memory-mapped."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

IGNORED = -100
"""The target of a token after which nothing is supervised."""


@dataclass(frozen=True)
class Counts:
    """What became of the rows of one side of the split."""

    rows: int
    duplicates: int
    truncated: int
    dropped: dict[str, int]
    """By reason."""


@dataclass(frozen=True)
class Corpus:
    """The documents of one side. One may stand in it twice or more, by its source's weight."""

    counts: Counts
    digest: str
    """Identity of the tokenised data: equal digests, equal documents in equal order."""
    lengths: np.ndarray
    """int64 [num_documents]: tokens."""
    target_counts: np.ndarray
    """int64 [num_documents]: targets that are not -100."""
    starts: np.ndarray = field(repr=False)
    ids: np.ndarray = field(repr=False)
    supervised: np.ndarray = field(repr=False)

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
        """`input_ids` and `targets`, int64 [L] each.

        Targets are shifted already: `targets[t]` is the token after t if that one is supervised, else -100.
        """
        start, stop = self.starts[i], self.starts[i] + self.lengths[i]
        ids = self.ids[start:stop].astype(np.int64)
        targets = np.full(len(ids), IGNORED, np.int64)
        np.copyto(targets[:-1], ids[1:], where=self.supervised[start + 1 : stop])
        return ids, targets


def save_side(folder: Path, name: str, index: np.ndarray, counts: Counts, digest: str) -> None:
    """`index` int64 [num_documents]: which of the folder's documents, in which order."""
    np.save(folder / f"{name}.npy", index)
    text = json.dumps({"counts": vars(counts), "digest": digest}, indent=1)
    (folder / f"{name}.json").write_text(text, encoding="utf-8")


def load_side(folder: Path, name: str) -> Corpus | None:
    """The documents of a side; None if the folder has no such side."""
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
        supervised=np.memmap(folder / "supervised.bin", np.bool_, mode="r"),
    )
