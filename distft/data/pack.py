"""Documents to rows: best-fit decreasing packing."""

import bisect
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rows:
    """Row r holds `documents[offsets[r]:offsets[r + 1]]`, whole and in this order."""

    offsets: np.ndarray
    """int64 [num_rows + 1]"""
    documents: np.ndarray
    """int64 [num_documents]"""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.documents[self.offsets[row] : self.offsets[row + 1]]

    def sums(self, values: np.ndarray) -> np.ndarray:
        """int64 [num_rows]: for each row, the sum of what `values` has for its documents."""
        return np.add.reduceat(values[self.documents], self.offsets[:-1])


def plan(lengths: np.ndarray, max_length: int, packing: bool) -> Rows:
    """Rows of at most `max_length` tokens; without packing, each document is one.

    Best-fit decreasing: the longest document first, each into the fullest row that still takes it.
    """
    assert len(lengths) and lengths.min() > 0 and lengths.max() <= max_length
    if not packing:
        return Rows(np.arange(len(lengths) + 1), np.arange(len(lengths)))
    row_of = _best_fit_decreasing(lengths, max_length)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row_of))])
    return Rows(offsets, np.argsort(row_of, kind="stable"))


def _best_fit_decreasing(lengths: np.ndarray, max_length: int) -> np.ndarray:
    """int64 [num_documents]: the row of each. O(n log max_length): rows with equal room left are interchangeable."""
    order = np.argsort(-lengths, kind="stable")
    shortest = int(lengths.min())
    rows_with: list[list[int]] = [[] for _ in range(max_length + 1)]
    rooms: list[int] = []  # the sorted amounts of room that some row has
    num_rows = 0
    placed = []
    for length in lengths[order].tolist():
        at = bisect.bisect_left(rooms, length)
        if at == len(rooms):
            row, room = num_rows, max_length
            num_rows += 1
        else:
            room = rooms[at]
            row = rows_with[room].pop()
            if not rows_with[room]:
                del rooms[at]
        placed.append(row)
        room -= length
        if room >= shortest:
            if not rows_with[room]:
                bisect.insort(rooms, room)
            rows_with[room].append(row)
    row_of = np.empty(len(lengths), np.int64)
    row_of[order] = placed
    return row_of
