"""Rows of many tables to documents, in parallel and in order."""

import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from distft.config import schema
from distft.data.document import Document, Malformed, Reader, Unusable, question_hash
from distft.data.source import Part

ROWS_A_CHUNK = 512
ROWS_A_WORKER = 8192
"""Fewer are faster here than in a process that must first import the tokenizer."""

ROW = np.dtype(
    [
        ("part", np.int32),
        ("row", np.int64),
        ("documents", np.int32),  # 0: the row is dropped
        ("prompt", np.uint64),  # hash of what the row asks
        ("identity", np.uint64, 2),  # hash of its documents
        ("truncated", np.bool_),
        ("reason", np.int32),  # why it is dropped: index into reasons, 0 is none
        ("reference", np.int64),  # bytes of its reference
    ]
)


@dataclass
class Chunk:
    rows: np.ndarray
    """ROW [num_rows]"""
    lengths: np.ndarray
    """int64 [num_documents]: tokens"""
    targets: np.ndarray
    """int64 [num_documents]"""
    segments: np.ndarray
    """int32 [num_documents, segments]: their lengths."""
    ids: np.ndarray
    """int32 [num_tokens]: the documents, one after the other."""
    labels: np.ndarray
    """Their labels, by the reader's layout."""
    references: bytes = b""
    reasons: list[str] = field(default_factory=lambda: [""])
    problems: list[tuple[int, str]] = field(default_factory=list)
    """Rows that are not of their format."""


@dataclass(frozen=True)
class SplitRule:
    """Which rows are held out: all of the later parts, and a share of the earlier ones by what they ask."""

    num_train_parts: int
    fraction: float
    num_replayed: int = 0
    """Of the train parts the last: older data."""

    @property
    def num_new(self) -> int:
        return self.num_train_parts - self.num_replayed

    def held_out(self, part: int, prompt: int) -> bool:
        return part >= self.num_train_parts or prompt < self.fraction * 2.0**64


@dataclass(frozen=True)
class Tokeniser:
    parts: list[Part]
    reader: Reader
    data: schema.Data
    rule: SplitRule

    def __call__(self, span: tuple[int, int, int]) -> Chunk:
        """Rows [start, stop) of a part."""
        number, start, stop = span
        part = self.parts[number]
        raw = list(part.table.read(start, stop))
        results = iter(self.reader.documents([row for row in raw if isinstance(row, dict)], part.format))
        rows = np.zeros(len(raw), ROW)
        rows["part"], rows["row"] = number, np.arange(start, stop)
        kept: list[Document] = []
        references, reasons, problems = b"", [""], []
        for entry, row in zip(rows, raw, strict=True):
            result = row if isinstance(row, Malformed) else next(results)
            if isinstance(row, Malformed) or isinstance(result, Malformed):
                problems.append((int(entry["row"]), str(result)))
                continue
            prompt = question_hash(self.reader.question(row, part.format))
            entry["prompt"] = prompt
            reason = str(result) if isinstance(result, Unusable) else self._keep(entry, result, kept)
            if reason:
                if reason not in reasons:
                    reasons.append(reason)
                entry["reason"] = reasons.index(reason)
            elif kept[-1].reference is not None and self.rule.held_out(number, prompt):
                reference = json.dumps(kept[-1].reference, ensure_ascii=False).encode()
                entry["reference"] = len(reference)
                references += reference
        return self._chunk(rows, kept, references, reasons, problems)

    def _keep(self, entry: np.void, documents: list[Document], kept: list[Document]) -> str:
        """Append the row's documents, cut to length, and note its figures; else say why it is dropped."""
        limit = self.data.max_length
        too_long = any(len(document.ids) > limit for document in documents)
        if too_long and self.data.too_long == "drop":
            return f"longer than {limit} tokens"
        cut = [self._cut(document) for document in documents]
        counting = [document for document in cut if document.num_targets()]
        if not counting:
            return f"no supervised token in the first {limit}" if too_long else "no supervised token"
        entry["documents"] = len(counting)
        entry["truncated"] = any(document.truncated for document in cut)
        digest = hashlib.sha256(b"".join(d.ids.tobytes() + d.labels.tobytes() for d in counting)).digest()
        entry["identity"] = np.frombuffer(digest, np.uint64, 2)
        kept += counting
        return ""

    def _cut(self, document: Document) -> Document:
        limit = self.data.max_length
        if len(document.ids) <= limit:
            return document
        assert self.reader.layout.per_token and self.reader.layout.segments == 1, "its reader must cut it itself"
        return replace(document, ids=document.ids[:limit], labels=document.labels[:limit], truncated=True)

    def _chunk(
        self,
        rows: np.ndarray,
        kept: list[Document],
        references: bytes,
        reasons: list[str],
        problems: list[tuple[int, str]],
    ) -> Chunk:
        layout = self.reader.layout
        return Chunk(
            rows,
            np.array([len(document.ids) for document in kept], np.int64),
            np.array([document.num_targets() for document in kept], np.int64),
            np.array([document.segments or (len(document.ids),) for document in kept], np.int32),
            np.concatenate([np.empty(0, np.int32), *(document.ids for document in kept)]),
            np.concatenate([np.empty(0, layout.dtype), *(document.labels for document in kept)]),
            references,
            reasons,
            problems,
        )


def chunks(
    parts: list[Part], reader: Reader, data: schema.Data, rule: SplitRule, poll: Callable[[], None]
) -> Iterator[Chunk]:
    """All rows of all parts, in order. `poll` is called between chunks and may raise."""
    tokenise = Tokeniser(parts, reader, data, rule)
    spans = deque(
        (number, start, min(start + ROWS_A_CHUNK, len(part.table)))
        for number, part in enumerate(parts)
        for start in range(0, len(part.table), ROWS_A_CHUNK)
    )
    num_rows = sum(len(part.table) for part in parts)
    num_workers = min(data.num_workers or len(os.sched_getaffinity(0)), num_rows // ROWS_A_WORKER)
    if num_workers < 2:
        for span in spans:
            poll()
            yield tokenise(span)
        return
    # Spawned, not forked: a fork of a process with CUDA, NCCL or OpenMP threads may hang.
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(num_workers, context, _start_worker, (tokenise,))
    try:
        waiting: deque[concurrent.futures.Future[Chunk]] = deque()
        while spans or waiting:
            while spans and len(waiting) < 4 * num_workers:  # a bound on the results that lie in memory
                waiting.append(pool.submit(_work, spans.popleft()))
            while not concurrent.futures.wait([waiting[0]], timeout=0.5).done:
                poll()
            poll()
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


_tokenise: Tokeniser


def _start_worker(tokenise: Tokeniser) -> None:
    global _tokenise
    _tokenise = tokenise
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    for stop in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):  # sent to the whole job; the parent decides
        signal.signal(stop, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker of a parent killed by -9 would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(span: tuple[int, int, int]) -> Chunk:
    return _tokenise(span)
