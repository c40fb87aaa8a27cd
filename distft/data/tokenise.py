"""Rows of many tables to documents, in parallel and in order."""

import concurrent.futures
import hashlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerFast

from distft.config import schema
from distft.data.source import Part
from distft.data.template import Document, Malformed, Template, prompt_hash

ROWS_A_CHUNK = 512
ROWS_A_WORKER = 8192
"""Fewer are faster here than in a process that must first import the tokenizer."""

ROW = np.dtype(
    [
        ("part", np.int32),
        ("row", np.int64),
        ("length", np.int64),  # tokens; 0: the row is dropped
        ("targets", np.int64),
        ("prompt", np.uint64),  # hash of what the row asks
        ("identity", np.uint64, 2),  # hash of the document
        ("truncated", np.bool_),
        ("reason", np.int32),  # why it is dropped: index into reasons, 0 is none
    ]
)


@dataclass
class Chunk:
    rows: np.ndarray
    """ROW [num_rows]"""
    ids: np.ndarray
    """int32 [num_tokens]: the documents, one after the other."""
    supervised: np.ndarray
    """bool [num_tokens]"""
    reasons: list[str]
    problems: list[tuple[int, str]]
    """Rows that are not of their format."""


@dataclass(frozen=True)
class Tokeniser:
    parts: list[Part]
    tokenizer: PreTrainedTokenizerFast
    data: schema.Data

    def __call__(self, span: tuple[int, int, int]) -> Chunk:
        """Rows [start, stop) of a part."""
        number, start, stop = span
        part = self.parts[number]
        raw = list(part.table.read(start, stop))
        read = [row for row in raw if isinstance(row, dict)]
        template = Template(self.tokenizer, self.data.loss_on)
        results = iter(template.documents(read, part.format))
        rows = np.zeros(len(raw), ROW)
        rows["part"], rows["row"] = number, np.arange(start, stop)
        chunk = Chunk(rows, np.empty(0, np.int32), np.empty(0, np.bool_), [""], [])
        kept: list[Document] = []
        for entry, row in zip(rows, raw, strict=True):
            result = row if isinstance(row, Malformed) else next(results)
            if isinstance(row, Malformed) or isinstance(result, Malformed):
                chunk.problems.append((int(entry["row"]), str(result)))
                continue
            entry["prompt"] = prompt_hash(row, part.format)
            reason = self._keep(entry, result, kept) if isinstance(result, Document) else str(result)
            if reason:
                if reason not in chunk.reasons:
                    chunk.reasons.append(reason)
                entry["reason"] = chunk.reasons.index(reason)
        if kept:
            chunk.ids = np.concatenate([document.ids for document in kept])
            chunk.supervised = np.concatenate([document.supervised for document in kept])
        return chunk

    def _keep(self, entry: np.void, document: Document, kept: list[Document]) -> str:
        """Append the document, cut to length, and note its figures; else say why it is dropped."""
        limit = self.data.max_length
        if too_long := len(document.ids) > limit:
            if self.data.too_long == "drop":
                return f"longer than {limit} tokens"
            document = Document(document.ids[:limit], document.supervised[:limit])
        if not document.supervised.any():
            return f"no supervised token in the first {limit}" if too_long else "no supervised token"
        entry["length"], entry["targets"] = len(document.ids), document.supervised.sum()
        entry["truncated"] = too_long
        digest = hashlib.sha256(document.ids.tobytes() + document.supervised.tobytes()).digest()
        entry["identity"] = np.frombuffer(digest, np.uint64, 2)
        kept.append(document)
        return ""


def chunks(
    parts: list[Part], tokenizer: PreTrainedTokenizerFast, data: schema.Data, poll: Callable[[], None]
) -> Iterator[Chunk]:
    """All rows of all parts, in order. `poll` is called between chunks and may raise."""
    tokenise = Tokeniser(parts, tokenizer, data)
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
