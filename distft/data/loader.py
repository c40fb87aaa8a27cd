"""Which rows make up a step, and this rank's share of them: arithmetic on (seed, epoch, step), no state."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from distft.config import schema
from distft.data.corpus import Corpus
from distft.data.document import IGNORED
from distft.data.pack import Rows


@dataclass(frozen=True)
class Batch:
    """Rows of one forward pass. Each row's documents follow one another; padding fills its end."""

    input_ids: torch.Tensor
    """int64 [B, S]"""
    position_ids: torch.Tensor
    """int64 [B, S]: 0 where a document, or padding, starts."""
    targets: torch.Tensor
    """Where labels are one a token, int64 [B, S]: the token (or class) to predict at each place, -100: none. Where they
    are `width` a document, int64 or float32 [D, width]."""
    document_ends: torch.Tensor
    """int32 [E + 1]: bounds of what attention isolates in the flattened B * S tokens, from 0 to B * S: the documents'
    segments, and padding."""
    max_document: int
    """Length of the longest of these."""
    num_tokens: int
    """Tokens that are not padding."""
    num_targets: int
    seed: int
    """For dropout: depends on the run's seed, the step and the rows, not on the rank."""
    documents: tuple[int, ...] = ()
    """Numbers of the documents in their corpus, D of them."""
    segments: torch.Tensor | None = None
    """int64 [D, segments, 2]: where each document's segments start and end in the flattened tokens."""

    def to(self, device: torch.device | str) -> "Batch":
        names = ("input_ids", "position_ids", "targets", "document_ends")
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        segments = None if self.segments is None else self.segments.to(device, non_blocking=True)
        return replace(self, **moved, segments=segments)

    def doubled(self) -> "Batch":
        """The same rows twice, one after the other; counts and seed stay those of one."""
        ends = self.document_ends
        return replace(
            self,
            input_ids=self.input_ids.repeat(2, 1),
            position_ids=self.position_ids.repeat(2, 1),
            targets=self.targets.repeat(2, 1),
            document_ends=torch.cat([ends, ends[1:] + ends[-1]]),
        )


class Loader:
    """The stream of rows is one permutation an epoch, end to end; step k (from 0) takes `global_batch` of them.

    Every rank builds it alike. With `epochs` the last step takes what is left of the stream.
    """

    def __init__(
        self,
        corpus: Corpus,
        rows: Rows,
        *,
        data: schema.Data,
        seed: int,
        steps: int | None,
        epochs: float | None,
        global_rank: int,
        world_size: int,
        pad_id: int,
    ):
        self.corpus, self.pad_id, self._rows = corpus, pad_id, rows
        self.seed, self.global_batch, self.micro_batch = seed, data.global_batch, data.micro_batch
        self.global_rank, self.world_size = global_rank, world_size
        self.accumulation = math.ceil(self.global_batch / (self.micro_batch * world_size))
        if steps is not None:
            self.num_positions = steps * self.global_batch
        else:
            assert epochs is not None
            self.num_positions = max(1, round(epochs * len(rows)))
        self.num_steps = math.ceil(self.num_positions / self.global_batch)
        self.row_tokens = rows.sums(corpus.lengths)
        self._row_targets = rows.sums(corpus.target_counts)

    def rows(self, step: int) -> np.ndarray:
        """int64: the rows of a step over all ranks, in stream order."""
        assert 0 <= step < self.num_steps
        first, last = step * self.global_batch, min((step + 1) * self.global_batch, self.num_positions)
        epoch, at = np.divmod(np.arange(first, last), len(self._rows))
        orders = {e: permutation(self.seed, e, len(self._rows)) for e in np.unique(epoch).tolist()}
        return np.array([orders[e][i] for e, i in zip(epoch.tolist(), at.tolist(), strict=True)], np.int64)

    def tokens(self, step: int) -> int:
        """Tokens of a step over all ranks."""
        return int(self.row_tokens[self.rows(step)].sum())

    def target_tokens(self, step: int) -> int:
        """Supervised tokens of a step over all ranks: what its loss is divided by."""
        return int(self._row_targets[self.rows(step)].sum())

    def epoch(self, step: int) -> float:
        """Passes over the data that are done once `step` steps are."""
        return min(step * self.global_batch, self.num_positions) / len(self._rows)

    def micro_batches(self, step: int) -> Iterator[Batch]:
        """This rank's share: always `accumulation` batches, where rows run out empty ones of zero weight."""
        rows = self.rows(step)
        rows = rows[np.argsort(-self.row_tokens[rows], kind="stable")]  # like lengths side by side: less padding
        for number in range(self.global_rank, self.accumulation * self.world_size, self.world_size):
            first = number * self.micro_batch
            share = rows[first : first + self.micro_batch]
            yield collate(self.corpus, self._rows, share, self.pad_id, _hash(self.seed, step, first))


def evaluation_batches(
    corpus: Corpus, rows: Rows, *, micro_batch: int, global_rank: int, world_size: int, pad_id: int
) -> list[Batch]:
    """Every row once over all ranks, and equally many batches on each of them."""
    order = np.argsort(-rows.sums(corpus.lengths), kind="stable")
    num_batches = math.ceil(len(rows) / micro_batch / world_size) * world_size
    mine = range(global_rank, num_batches, world_size)
    return [collate(corpus, rows, order[n * micro_batch : (n + 1) * micro_batch], pad_id, seed=0) for n in mine]


def collate(corpus: Corpus, rows: Rows, chosen: np.ndarray, pad_id: int, seed: int) -> Batch:
    """These rows as one batch; no rows: a single padding token, which weighs nothing.

    Where labels are not next tokens, all documents lie in one row, B = 1: no place is padding, packed or not.
    """
    numbers = [rows[row].tolist() for row in chosen] or [[]]
    if corpus.layout.labels != "next_token":
        numbers = [list(itertools.chain.from_iterable(numbers))]
    documents = [[corpus.document(i) for i in row] for row in numbers]
    sizes = [sum(len(ids) for ids, _ in row) for row in documents]
    width = max([1, *sizes])
    input_ids = np.full((len(documents), width), pad_id, np.int64)
    lengths: list[int] = []
    bounds: list[np.ndarray] = []
    for r, (row, size) in enumerate(zip(documents, sizes, strict=True)):
        if row:
            input_ids[r, :size] = np.concatenate([ids for ids, _ in row])
        at = r * width
        for i in numbers[r]:
            parts = corpus.segments(i)
            ends = at + np.cumsum(parts)
            bounds.append(np.stack([ends - parts, ends], 1))
            lengths += parts.tolist()
            at = int(ends[-1])
        lengths += [width - size] if size < width else []
    ends = np.concatenate([[0], np.cumsum(lengths)])
    positions = np.arange(ends[-1]) - np.repeat(ends[:-1], lengths)
    targets = _targets(corpus, documents, sizes, width)
    everyone = list(itertools.chain.from_iterable(numbers))
    return Batch(
        torch.from_numpy(input_ids),
        torch.from_numpy(positions.reshape(input_ids.shape)),
        torch.from_numpy(targets),
        torch.from_numpy(ends.astype(np.int32)),
        max_document=max(lengths),
        num_tokens=sum(sizes),
        num_targets=int(corpus.target_counts[everyone].sum()) if everyone else 0,
        seed=seed,
        documents=tuple(everyone),
        segments=torch.from_numpy(np.array(bounds, np.int64).reshape(len(everyone), corpus.layout.segments, 2)),
    )


def _targets(
    corpus: Corpus, documents: list[list[tuple[np.ndarray, np.ndarray]]], sizes: list[int], width: int
) -> np.ndarray:
    layout = corpus.layout
    if not layout.per_token:
        kind = np.float32 if layout.dtype == "float32" else np.int64
        labels = [labels for row in documents for _, labels in row]
        return np.array(labels, kind).reshape(len(labels), layout.width)
    targets = np.full((len(documents), width), IGNORED, np.int64)
    for r, (row, size) in enumerate(zip(documents, sizes, strict=True)):
        if row:
            targets[r, :size] = np.concatenate([labels for _, labels in row])
    return targets


@lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order of an epoch's rows. Raw Philox bits: NumPy keeps those the same over releases, not `permutation`."""
    return np.argsort(np.random.Philox(key=[seed, epoch]).random_raw(size), kind="stable")


def _hash(*numbers: int) -> int:
    """63 bits of the numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
