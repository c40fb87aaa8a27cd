"""What a task asks of every document once, before training, kept beside the tokenised data: a teacher's predictions.

It is found through the engine's own evaluation, so a sharded model takes part as in training, and rank 0 writes what
all found. Complete, or not there.
"""

import logging
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from distft.config import schema
from distft.data.corpus import Corpus
from distft.data.loader import evaluation_batches
from distft.data.pack import plan
from distft.engine.seam import Engine
from distft.errors import ConfigError, Stopped
from distft.runtime.group import Group
from distft.runtime.stop import StopFlag
from distft.task.module import Columns, TaskModule

logger = logging.getLogger(__name__)


def precompute(
    module: TaskModule,
    engine: Engine,
    sides: Mapping[str, Corpus | None],
    folder: Path,
    config: schema.Config,
    group: Group,
    pad_id: int,
    stop: StopFlag,
) -> None:
    """Hands the module what it wants to know of the documents of each side; from `folder`, the data's, if it is there.

    All ranks call it. Raises Stopped where one was asked to stop, ConfigError where the ranks share no folder.
    """
    asked = module.precompute
    if asked is None:
        return
    for side, corpus in sides.items():
        if corpus is None:
            continue
        kept = folder / f"{asked.name}-{side}"
        if not group.from_main(kept.exists()):
            logger.info("%s: asked once for each of %d documents", asked.name, corpus.num_documents)
            _write(kept, module, engine, corpus, config, group, pad_id, stop)
        if group.any(not kept.exists()):
            raise ConfigError(
                f"data.cache_dir: must be on a file system that all ranks share, got {config.data.cache_dir}, where "
                f"{asked.name} of rank 0 is not seen; set data.cache_dir to a shared folder"
            )
        asked.take(side, corpus, {name: np.load(kept / f"{name}.npy", mmap_mode="r") for name in asked.columns})


def _write(
    kept: Path,
    module: TaskModule,
    engine: Engine,
    corpus: Corpus,
    config: schema.Config,
    group: Group,
    pad_id: int,
    stop: StopFlag,
) -> None:
    asked, is_main = module.precompute, group.ranks.is_main
    assert asked is not None
    aside = kept.with_name(f".{kept.name}.{uuid.uuid4().hex[:8]}")  # other runs may ask the same at the same time
    # Written by one rank alone: on NFS, what two nodes write to one page of a file is not put together.
    files = _make(aside, asked.columns, corpus.num_targets) if is_main else {}
    ends = np.cumsum(corpus.target_counts)
    batches = evaluation_batches(
        corpus,
        plan(corpus.lengths, config.data.max_length, config.data.packing),
        micro_batch=config.data.micro_batch,
        global_rank=group.ranks.global_rank,
        world_size=group.ranks.world_size,
        pad_id=pad_id,
    )
    try:
        with asked.running():
            for batch in batches:
                _, found = engine.evaluate(batch)
                shares = group.to_main(list(zip(batch.documents, found, strict=True)))
                for number, answers in (each for share in shares for each in share):
                    for name, values in answers.items():
                        files[name][ends[number] - len(values) : ends[number]] = values
                if group.any(stop.is_set):
                    raise Stopped(f"stopped while {asked.name} was made; run the same command to begin again")
        for file in files.values():
            file.flush()
        if is_main and not kept.exists():
            aside.rename(kept)
    finally:
        if is_main:
            shutil.rmtree(aside, ignore_errors=True)
    group.barrier()


def _make(folder: Path, columns: Columns, num_rows: int) -> dict[str, np.memmap]:
    """Empty files of the right size."""
    folder.mkdir()
    return {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.dtype(dtype), (num_rows, width))
        for name, (dtype, width) in columns.items()
    }
