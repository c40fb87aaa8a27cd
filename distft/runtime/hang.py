"""A rank that makes no step is named: all ranks write where they stand, the run ends, and can be started again.

Ranks agree at each step and at each batch of an evaluation (`Group.table`). Where that does not happen for long, one
of them hangs and all others wait for it, in a collective that would time out half an hour later and say nothing.
"""

import contextlib
import faulthandler
import inspect
import json
import os
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed

import distft
from distft.errors import EXIT_FAILED
from distft.runtime.files import write_whole
from distft.runtime.group import Group

Told = Callable[[str, list[str]], None]

GRACE_S = 4.0
"""Ranks come to see a hang within a poll of each other."""
OURS = str(Path(distft.__file__).parent) + os.sep
WAITS = (str(Path(torch.distributed.__file__).parent) + os.sep, inspect.getfile(Group))
"""A rank that stands in such a file waits for others."""


@contextlib.contextmanager
def watch(group: Group, folder: Path, after_s: float | None, told: Told) -> Iterator[None]:
    """A watchdog while the block runs; none where `after_s` is None. Every rank calls it."""
    watchdog = Watchdog(group, folder, after_s, told) if after_s is not None else None
    try:
        yield
    finally:
        if watchdog is not None:
            watchdog.close()


class Watchdog:
    """Ends this process where no agreement was reached for `after_s` seconds; every rank has one.

    `told(sentence, nodes)` is called on one rank: which ranks stand where, and the nodes of those that others wait for.
    """

    def __init__(self, group: Group, folder: Path, after_s: float, told: Told):
        self._group, self._folder, self._after_s, self._told = group, folder, after_s, told
        self._nodes: list[str] = group.gather(group.ranks.node)
        self._done = threading.Event()
        self._stacks = (folder / f".stacks-rank-{group.ranks.global_rank:05d}").open("w", encoding="utf-8")
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def close(self) -> None:
        self._done.set()
        faulthandler.cancel_dump_traceback_later()
        self._stacks.close()
        Path(self._stacks.name).unlink(missing_ok=True)

    def _watch(self) -> None:
        seen = None
        while not self._done.wait(min(1.0, self._after_s / 10)):
            if self._group.agreed_at != seen:
                seen = self._group.agreed_at
                # faulthandler's own thread needs no interpreter lock: what hangs may hold it.
                faulthandler.dump_traceback_later(self._after_s, file=self._stacks)
            if time.monotonic() - self._group.agreed_at > self._after_s + 0.5:
                try:
                    self._report()
                finally:
                    os._exit(EXIT_FAILED)

    def _report(self) -> None:
        rank = self._group.ranks.global_rank
        Path(self._stacks.name).rename(self._folder / f"hang-rank-{rank:05d}.txt")
        write_whole(self._folder / f"hang-rank-{rank:05d}.json", json.dumps(where()))
        if torch.cuda.is_available():
            (self._folder / f"hang-rank-{rank:05d}.collectives.json").write_bytes(flight_record())
        time.sleep(GRACE_S)
        standing = self._collect()
        summary = self._folder / "hang.txt"
        if rank == min(standing):
            sentence, suspects = summarise(standing, self._nodes, self._after_s)
            self._told(sentence, sorted({self._nodes[suspect] for suspect in suspects}))
            print(f"error: {sentence}; stacks of all ranks: {self._folder}/hang-rank-*", file=sys.stderr, flush=True)
            write_whole(summary, sentence + "\n")
        else:  # the first rank that ends takes all others with it
            end = time.monotonic() + 2 * GRACE_S
            while time.monotonic() < end and not (summary.exists() and _age(summary) < 2 * GRACE_S):
                time.sleep(0.1)

    def _collect(self) -> dict[int, dict[str, Any]]:
        standing = {}
        for file in self._folder.glob("hang-rank-*.json"):
            if _age(file) < 5 * GRACE_S and file.stem.removeprefix("hang-rank-").isdigit():
                standing[int(file.stem.removeprefix("hang-rank-"))] = json.loads(file.read_text(encoding="utf-8"))
        return standing


def flight_record() -> bytes:
    """NCCL's last collectives on this rank, which were begun, and which ended."""
    try:
        return bytes(torch._C._distributed_c10d._dump_nccl_trace_json())  # type: ignore[attr-defined]
    except (AttributeError, RuntimeError, TypeError) as error:  # private to torch: never at the cost of the report
        return f"torch gave no flight record: {error}".encode()


def where() -> dict[str, Any]:
    """Where the main thread stands: its innermost call in distft, and whether it waits for other ranks there."""
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    stack = traceback.extract_stack(frame)
    ours = [call for call in stack if call.filename.startswith(OURS)]
    at = (ours or list(stack))[-1]
    return {
        "at": f"{Path(at.filename).name}:{at.lineno} {at.name}",
        "waits": any(call.filename.startswith(WAITS) for call in stack[-8:]),
    }


def summarise(standing: dict[int, dict[str, Any]], nodes: list[str], after_s: float) -> tuple[str, list[int]]:
    """A sentence on a hang, and the ranks that others wait for. `standing`: what `where` says, by rank."""
    silent = [rank for rank in range(len(nodes)) if rank not in standing]
    busy = [rank for rank, place in standing.items() if not place["waits"]]
    suspects = silent or busy
    parts = [f"rank {rank} on {nodes[rank]} does not answer" for rank in silent]
    parts += [f"rank {rank} on {nodes[rank]} stands at {standing[rank]['at']}" for rank in busy]
    waiting = Counter(place["at"] for place in standing.values() if place["waits"])
    parts += [f"{count} of {len(nodes)} ranks wait at {at}" for at, count in waiting.items()]
    return f"no step for {after_s:.0f} s: " + ", ".join(parts), suspects


def _age(file: Path) -> float:
    return time.time() - file.stat().st_mtime
