"""What tests change inside a training's processes, before its command runs."""

import contextlib
import errno
import os
import signal
from pathlib import Path
from typing import Any


def in_folder(global_rank: int, folder: str, env: dict[str, str] | None = None) -> None:
    """The command runs in a folder, with more in its environment."""
    os.chdir(folder)
    os.environ.update(env or {})


def held_out_losses(global_rank: int, losses: list[float], kill_at: int | None = None) -> None:
    """The n-th step's held-out loss is `losses[n]`; kill -9 in the evaluation of step `kill_at`."""
    from distft.session.held_out import HeldOut
    from distft.task.seam import Scores
    from distft.train import loop

    def score(*_: Any) -> Scores:
        if current.step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return Scores({"loss": losses[current.step]})

    evaluate = loop._evaluate
    current: Any = None

    def note(run: loop.Run) -> bool:
        nonlocal current
        current = run.progress
        return evaluate(run)

    loop._evaluate, HeldOut.score = note, score


def nan_loss(global_rank: int, step: int) -> None:
    """The losses of one step (counted from 1) are NaN on rank 0."""
    import torch

    from distft.task.causal_lm import CausalLM
    from distft.train import loop

    run_step, loss = loop._step, CausalLM._loss
    current = 0

    def note(run: loop.Run) -> bool:
        nonlocal current
        current = run.progress.step + 1
        return run_step(run)

    def poisoned(self: CausalLM, *arguments: Any) -> Any:
        value = loss(self, *arguments)
        return (
            value * float("nan") if self.training and current == step and torch.distributed.get_rank() == 0 else value
        )

    loop._step, CausalLM._loss = note, poisoned


def idle_module(global_rank: int, name: str) -> None:
    """What module `name` puts out passes no gradient on."""
    from distft.task.causal_lm import CausalLM

    make = CausalLM.__init__

    def cut(self: CausalLM, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        self.model.get_submodule(name).register_forward_hook(lambda module, given, out: out.detach())

    CausalLM.__init__ = cut


def disk_full(global_rank: int, saves: list[int], kind: str = "OSError") -> None:
    """Writing the tensors of the n-th save (from 1) of this process fails, for n in `saves`."""
    from safetensors import SafetensorError

    from distft.run import tensors
    from distft.run.checkpoints import Checkpoints

    write_file, write = tensors.save_file, Checkpoints._write
    number = 0

    def count(self: Checkpoints, *arguments: Any) -> None:
        nonlocal number
        number += 1
        write(self, *arguments)

    def full(content: Any, file: Path, **named: Any) -> None:
        if number in saves:
            file.write_bytes(b"half")
            if kind == "OSError":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        write_file(content, file, **named)

    tensors.save_file, Checkpoints._write = full, count


def fill_disk(global_rank: int, folder: str, step: int) -> None:
    """At the begin of a step (counted from 1) the disk of `folder` is full."""
    from distft.train import loop

    run_step = loop._step

    def fill(run: loop.Run) -> bool:
        if run.progress.step + 1 == step:
            run.checkpoints.wait()
            with Path(folder, "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(bytes(1 << 12)):
                    pass
        return run_step(run)

    loop._step = fill


def signal_in_step(global_rank: int, rank: int, step: int, number: int) -> None:
    """A signal reaches `rank` in a step (counted from 1)."""
    from distft.train import loop

    run_step = loop._step

    def interrupted(run: loop.Run) -> bool:
        if run.progress.step + 1 == step and global_rank == rank:
            os.kill(os.getpid(), number)
        return run_step(run)

    loop._step = interrupted


def slow_writes(global_rank: int, seconds: float) -> None:
    """Every write of a checkpoint takes so long."""
    import time

    from distft.run.checkpoints import Checkpoints

    write = Checkpoints._write

    def slow(self: Checkpoints, *arguments: Any) -> None:
        if global_rank == 0:
            time.sleep(seconds)
        write(self, *arguments)

    Checkpoints._write = slow


def keep_gradients(global_rank: int, file: str) -> None:
    """The full gradients of every step (counted from 1), each in `file`-STEP."""
    from safetensors.torch import save_file

    from distft.train import loop

    watch = loop._watch_gradients

    def note(run: loop.Run) -> None:
        full = {name: gradient.detach().clone() for name, gradient in run.engine.gradients()}
        if global_rank == 0:
            save_file(full, f"{file}-{run.progress.step + 1}")
        watch(run)

    loop._watch_gradients = note
