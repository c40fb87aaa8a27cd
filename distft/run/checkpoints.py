"""Checkpoints: full tensors of what trains and of its optimizer, free of engine and world size, published whole or not.

A save copies the state to host memory (the loop's only wait) and writes it in a thread: into a folder aside, each file
fsynced, the manifest last, then one rename by rank 0. At most one save is in flight. Not `whole_folder`: all ranks
write into the folder aside, so it has a name that all of them know, and one of them decides whether it counts.
"""

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from distft.engine.schedule import Schedule
from distft.engine.seam import Engine
from distft.errors import ConfigError, DistftError
from distft.model.adapter.saved import Beside
from distft.run.damage import MANIFEST, Entry, damage, manifest_entry
from distft.run.steps import PREFIX, State, folder_name, published, read_state, set_aside, step_of
from distft.run.tensors import TensorFolder, file_name, write_tensors
from distft.runtime.files import fsync, write_whole
from distft.runtime.group import Group

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run. All ranks make it and call its methods together.

    `weights` names the file of what trains: `adapter_model` (one file, written by rank 0) or `model` (each rank
    writes its part, as the weights are sharded). `describe` gives the small files beside it, by name, `beside` the
    tensors that do not train and that the file must hold all the same. `may_publish` is asked before the rename:
    whether the run folder is still rank 0's own.
    """

    def __init__(
        self,
        run_dir: Path,
        group: Group,
        *,
        weights: str,
        keep: int,
        describe: dict[str, str],
        beside: Beside | None = None,
        may_publish: Callable[[], bool] | None = None,
    ):
        self.folder = run_dir / "checkpoints"
        self.group, self.weights, self.keep, self.describe = group, weights, keep, describe
        self.beside, self.may_publish = beside or Beside(), may_publish or (lambda: True)
        self.writers = 1 if weights == "adapter_model" else group.ranks.world_size
        # The thread's own group: the loop may be in a collective of its own meanwhile.
        self._thread_group = dist.new_group(backend="gloo") if self.writers > 1 else None
        self._thread: threading.Thread | None = None
        self._failure: str | None = None
        self._staging: dict[str, Tensor] = {}
        # Every rank must know without a look at the file system, which shows each of them a rename at another time.
        self._saved: int | None = None
        self.save_seconds = 0.0
        """From the begin of a save to its checkpoint, of the last one."""

    def save(
        self, engine: Engine, step: int, state: dict[str, Any], schedule: Iterable[tuple[str, Tensor]] = ()
    ) -> None:
        """Begins a checkpoint of `step` done steps. Waits for the last save, and for the copy to host memory.

        `state["best_step"]` names a checkpoint that is kept as long as this one. `schedule`: the adapter's, if it has
        tensors of its own.
        """
        self.wait()
        if step == self._saved:  # also where the run resumed from it: a published checkpoint is never written again
            return
        self._saved, began = step, time.monotonic()
        parts = {
            self.weights: self._stage(engine.trainable_state()),
            "optimizer": self._stage(engine.optimizer_state()),
        }
        if staged := self._stage((f"schedule.{name}", tensor) for name, tensor in schedule):
            parts["schedule"] = [(name.removeprefix("schedule."), tensor) for name, tensor in staged]
        self._thread = threading.Thread(target=self._write, args=(step, parts, state, began), name="checkpoint")
        self._thread.start()

    def wait(self, *, must_succeed: bool = False) -> None:
        """Waits until the save in flight is published. A failed one is reported, or raised where `must_succeed`.

        Raises DistftError on every rank: one that left early would have its launcher end rank 0 amid its writing.
        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        failure = self.group.from_main(self._failure)
        self._failure = None
        if not failure:
            return
        self._saved = None
        if must_succeed:
            raise DistftError(
                f"checkpoint.every: {failure}; earlier checkpoints are intact: free space, then run again"
            )
        if self.group.ranks.is_main:
            logger.error("%s; the run goes on, earlier checkpoints are intact", failure)

    def find(self, resume: str) -> Path | None:
        """The checkpoint that `resume` asks for; of a path that this run started from already, the newest since.

        Raises ConfigError for a path whose checkpoint is damaged.
        """
        newest = self.newest()
        if resume in ("auto", "never"):
            return newest
        if newest is not None and read_state(newest).get("resumed_from") == resume:
            return newest
        path = Path(resume).expanduser().absolute()
        problems = self.group.from_main(damage(path) if self.group.ranks.is_main else None)
        if problems:
            raise ConfigError(f"resume: {path} is damaged ({'; '.join(problems)}); give another one, or resume=auto")
        return path

    def go_on_from(self, path: Path) -> None:
        """Makes `path` the newest of this run's checkpoints: later ones, of a course now left, are put aside."""
        if path.parent != self.folder:
            return
        self._saved = step_of(path)
        if self.group.ranks.is_main:
            for later in published(self.folder):
                if step_of(later) > self._saved:
                    aside = set_aside(later, "superseded")
                    logger.warning(
                        "checkpoint %s is of a later step than resume asks for: kept as %s", later, aside.name
                    )

    def newest(self) -> Path | None:
        """The newest valid checkpoint. A damaged one is named and passed over. Sweeps what dead saves left behind."""
        found: Path | None = None
        if self.group.ranks.is_main and self.folder.exists():
            for orphan in self.folder.glob(f".{PREFIX}*"):
                shutil.rmtree(orphan)
            for path in reversed(published(self.folder)):
                problems = damage(path)
                if not problems:
                    found = path
                    break
                logger.warning("checkpoint %s is damaged (%s): the one before it is used", path, "; ".join(problems))
                set_aside(path, "damaged")
        return self.group.from_main(found)

    def load(self, engine: Engine, path: Path, schedule: Schedule) -> State:
        """Puts a checkpoint into `engine` and `schedule`; returns its `state.json`.

        Raises ConfigError where it does not fit.
        """
        weights, optimizer = TensorFolder(path, self.weights), TensorFolder(path, "optimizer")
        ours = {name: tuple(tensor.shape) for name, tensor in engine.trainable_state()}
        theirs = {name: weights.shape(name) for name in weights.names if name not in self.beside.names}
        if differing := sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)):
            first = differing[0]
            raise ConfigError(
                f"resume: checkpoint must hold exactly the parameters that train, got {path}, where {len(differing)} "
                f"differ, such as {first} ({theirs.get(first, 'none')} in place of {ours.get(first, 'none')}); "
                "give another name= for a run with another adapter"
            )
        engine.load_trainable_state(weights.read)
        if optimizer.names:
            engine.load_optimizer_state(optimizer.names, optimizer.read)
        own = TensorFolder(path, "schedule")
        schedule.load_state(own.names, own.read)
        return read_state(path)

    def _stage(self, tensors: Iterator[tuple[str, Tensor]]) -> list[tuple[str, Tensor | None]]:
        """Every name in order, with a host copy of those that this rank writes. Buffers are kept from save to save."""
        staged: list[tuple[str, Tensor | None]] = []
        load = [0] * self.writers
        for name, tensor in tensors:
            writer = load.index(min(load))
            load[writer] += tensor.nbytes
            if writer != self.group.ranks.global_rank:
                staged.append((name, None))
                continue
            buffer = self._staging.get(name)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = self._staging[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
            buffer.copy_(tensor)
            staged.append((name, buffer))
        return staged

    def _write(
        self, step: int, parts: dict[str, list[tuple[str, Tensor | None]]], state: dict[str, Any], began: float
    ) -> None:
        """What the thread does. Nobody is above it to see an exception, and other ranks wait to hear of it."""
        aside, final = self.folder / f".{folder_name(step)}", self.folder / folder_name(step)
        rank = self.group.ranks.global_rank
        if rank >= self.writers:
            return
        files, failure = dict[str, Entry](), None
        try:
            files = self._write_parts(aside, parts)
        except Exception as error:  # noqa: BLE001 - safetensors has errors of its own for a full disk
            failure = f"saving step {step} to {final} failed on rank {rank} ({error})"
        everyone: list[Any] = [(files, failure)]
        try:
            if self._thread_group is not None:
                everyone = [None] * self.writers
                dist.all_gather_object(everyone, (files, failure), group=self._thread_group)
            failure = next((failed for _, failed in everyone if failed), None)
            if rank == 0 and not failure:
                self._publish(aside, final, {k: v for files, _ in everyone for k, v in files.items()}, parts, state)
        except Exception as error:  # noqa: BLE001
            failure = f"saving step {step} to {final} failed ({error})"
        if failure and rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
        self._failure, self.save_seconds = failure, time.monotonic() - began

    def _write_parts(self, aside: Path, parts: dict[str, list[tuple[str, Tensor | None]]]) -> dict[str, Entry]:
        """Writes this rank's tensors; returns their lines of the manifest."""
        aside.mkdir(parents=True, exist_ok=True, mode=0o700)
        files: dict[str, Entry] = {}
        for part, tensors in parts.items():
            mine = {name: tensor for name, tensor in tensors if tensor is not None}
            if part == self.weights:
                mine |= self.beside.of(mine)
            files |= write_tensors(aside / file_name(part, self.group.ranks.global_rank, self.writers), mine)
        return files

    def _publish(
        self, aside: Path, final: Path, files: dict[str, Entry], parts: dict[str, list[Any]], state: dict[str, Any]
    ) -> None:
        texts = {**self.describe, "state.json": json.dumps(state, indent=2)}
        if self.writers > 1:
            texts.update({f"{part}.safetensors.index.json": TensorFolder(aside, part).index() for part in parts})
        for name, text in texts.items():
            write_whole(aside / name, text)
            files[name] = manifest_entry(aside / name)
        write_whole(aside / MANIFEST, json.dumps({"files": files}, indent=2))
        fsync(aside)
        if not self.may_publish():
            raise OSError("the run folder has another owner now")
        aside.rename(final)
        fsync(self.folder)
        try:
            self._prune()
        except OSError as error:  # the new checkpoint stands
            logger.warning("an old checkpoint could not be removed (%s)", error)

    def _prune(self) -> None:
        """Removes all but the newest `keep`, and the best ones of which those speak."""
        paths = published(self.folder)
        bests = {read_state(path).get("best_step") for path in paths[-self.keep :]}
        for path in paths[: -self.keep]:
            if step_of(path) not in bests:
                # Hidden first: a kill amid the removal leaves an orphan, not half a checkpoint.
                shutil.rmtree(path.rename(path.with_name(f".{path.name}")))
