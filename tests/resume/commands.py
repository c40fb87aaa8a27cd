"""`python -m COMMAND` in processes forked from one which has imported everything: seconds, not half a minute.

A forked process joins its own group, handles its own signals, ends by its own exit code, and can be killed at will.
"""

import functools
import importlib
import inspect
import multiprocessing
import multiprocessing.connection
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.ranks import require_warm, warm_context

COUNTED = (
    "distft.train.loop",
    "distft.run.checkpoints",
    "distft.run.damage",
    "distft.run.steps",
    "distft.run.tensors",
    "distft.data.loader",
    "distft.engine.single",
    "distft.engine.fsdp",
    "distft.engine.zero",
    "distft.run.folder",
    "distft.runtime.files",
    "distft.runtime.group",
    "distft.tracking.metrics",
)
"""Modules whose function calls are the instants at which a kill may fall."""

Hook = tuple[Any, ...]
"""A function and its arguments, called in each rank (with `global_rank` before them) ahead of the command."""


@dataclass
class Ended:
    """A command that ended: exit codes by rank (negative: the signal that killed it), and all it printed."""

    codes: list[int]
    output: str

    @property
    def code(self) -> int:
        """The one code that all ranks ended with."""
        assert len(set(self.codes)) == 1, f"ranks ended with {self.codes}:\n{self.output}"
        return self.codes[0]


class Command:
    """`python -m PROGRAM WORDS` that runs: one process a rank."""

    def __init__(self, context: Any, folder: Path, program: str, words: list[str], world_size: int, hook: Hook | None):
        self.outputs = [folder / f"output-{rank}.txt" for rank in range(world_size)]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.processes = []
        for rank, output in enumerate(self.outputs):
            env = {
                "OMP_NUM_THREADS": "1",
                "DS_ACCELERATOR": "cpu",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            if world_size > 1:
                env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
                env |= {"LOCAL_WORLD_SIZE": str(world_size)}
            self.processes.append(context.Process(target=_run, args=(program, words, env, rank, str(output), hook)))
        for process in self.processes:
            process.start()

    def signal(self, rank: int, number: signal.Signals) -> None:
        os.kill(self.processes[rank].pid, number)

    def wait_for(self, file: Path, text: str, timeout_s: float = 60) -> None:
        """Until `file` holds `text`."""
        end = time.monotonic() + timeout_s
        while not (file.exists() and text in file.read_text()):
            assert time.monotonic() < end, f"no {text!r} in {file}:\n{self.output()}"
            assert any(process.is_alive() for process in self.processes), self.output()
            time.sleep(0.01)

    def end(self, timeout_s: float = 120) -> Ended:
        """Waits for all ranks. Where one is killed the others are killed too, as launchers do."""
        end = time.monotonic() + timeout_s
        while any(process.is_alive() for process in self.processes):
            late = time.monotonic() > end
            if late or any(process.exitcode == -signal.SIGKILL for process in self.processes):
                for process in self.processes:
                    process.kill()
            assert not late, f"still running after {timeout_s} s:\n{self.output()}"
            multiprocessing.connection.wait([p.sentinel for p in self.processes if p.is_alive()], timeout=0.5)
        return Ended([process.exitcode for process in self.processes], self.output())

    def output(self) -> str:
        return "\n".join(output.read_text(errors="replace") for output in self.outputs if output.exists())


class Commands:
    """Starts commands."""

    def __init__(self, folder: Path):
        self.folder, self.started = folder, list[Command]()
        self.context = warm_context()

    def start(
        self, *words: str, program: str = "distft.train", world_size: int = 1, hook: Hook | None = None
    ) -> Command:
        folder = self.folder / str(len(self.started))
        folder.mkdir(parents=True)
        self.started.append(Command(self.context, folder, program, list(words), world_size, hook))
        return self.started[-1]

    def close(self) -> None:
        """Ends what a failed test has left running."""
        for command in self.started:
            for process in command.processes:
                process.kill()

    def run(self, *words: str, timeout_s: float = 120, **how: Any) -> Ended:
        """`start`, and `end`."""
        return self.start(*words, **how).end(timeout_s)


def count_calls(global_rank: int, file: str, kill_rank: int = -1, kill_at: int = 0, only: str = "") -> None:
    """Hook: counts the calls of distft's functions (of those named `only`), over all threads; kill -9 at one of them.

    Rank 0 writes the count to `file` when the process ends.
    """
    number = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal number
            number += 1
            if number == kill_at and global_rank == kill_rank:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        call.counted = True  # type: ignore[attr-defined]
        return call

    for module in map(importlib.import_module, COUNTED):
        for place in [module, *(thing for thing in vars(module).values() if inspect.isclass(thing))]:
            for name, thing in list(vars(place).items()):
                ours = inspect.isfunction(thing) and thing.__module__ in COUNTED and not hasattr(thing, "counted")
                if ours and only in ("", name):  # under each name that it is called by
                    setattr(place, name, counted(thing))

    def leave(code: int, leave: Callable[[int], None] = os._exit) -> None:
        if global_rank == 0:
            Path(file).write_text(str(number))
        leave(code)

    os._exit = leave  # type: ignore[assignment]


def _run(program: str, words: list[str], env: dict[str, str], rank: int, output: str, hook: Hook | None) -> None:
    os.environ.update(env)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    require_warm()
    sys.argv = [program, *words]
    if hook is not None:
        function, *arguments = hook
        function(rank, *arguments)
    runpy.run_module(program, run_name="__main__", alter_sys=True)
