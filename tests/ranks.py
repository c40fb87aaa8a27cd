"""Ranks for tests: processes that join one gloo group and then run function after function.

They are forked from one which has imported everything, as the commands of `tests/resume` are.
"""

import gc
import importlib
import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any


def warm_context() -> Any:
    """Processes of it are forked from one process, the same for all of this one's, that has imported `tests.warm`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.warm"])
    return context


def require_warm() -> None:
    """The fork server passes over what it cannot import, and every process would import it all again, in silence."""
    assert "tests.warm" in sys.modules, f"not imported by the fork server: {importlib.import_module('tests.warm')}"


class RankPool:
    """`world_size` processes in one process group."""

    def __init__(self, world_size: int, cuda: bool = False):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        context = warm_context() if not cuda else multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, world_size, port, theirs, cuda), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, function: Callable[..., Any], *args: Any, timeout_s: float = 240) -> list[Any]:
        """`function(group, *args)` on every rank; the results by rank. `function` must be importable."""
        for pipe in self.pipes:
            pipe.send((function, args))
        results = []
        for rank, pipe in enumerate(self.pipes):
            assert pipe.poll(timeout_s), f"rank {rank} gave no answer in {timeout_s} s"
            ok, value = pipe.recv()
            assert ok, f"rank {rank} failed:\n{value}"
            results.append(value)
        return results

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def _serve(rank: int, world_size: int, port: int, pipe: Any, cuda: bool) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    if not cuda:
        os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")
        require_warm()
    import torch

    from distft.runtime.env import Ranks
    from distft.runtime.group import Group

    torch.set_num_threads(1)
    group = Group(Ranks(rank, world_size, rank, world_size, "127.0.0.1", port, "torchrun"), timeout_min=3)
    while True:
        # DeepSpeed collects garbage by hand whenever an engine starts, and never lets go of the engines before it.
        gc.collect()
        gc.freeze()
        function, args = pipe.recv()
        try:
            pipe.send((True, function(group, *args)))
        except BaseException:  # noqa: BLE001  (whatever it was, the test is to see it)
            pipe.send((False, traceback.format_exc()))
