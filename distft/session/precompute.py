"""What a task asks of every document once, before training, kept beside the tokenised data: a teacher's predictions.

It is found through the engine's own evaluation, so a sharded model takes part as in training, and rank 0 writes what
all found. Complete, or not there.
"""

import logging
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from distft.data.corpus import Corpus
from distft.errors import ConfigError, Stopped
from distft.runtime.files import sweep
from distft.session.session import Session
from distft.session.task_data import TaskData
from distft.task.module import Columns, Precompute

logger = logging.getLogger(__name__)

Split = Literal["train", "eval"]


def precompute(session: Session, data: TaskData, splits: Sequence[Split] = ("train", "eval")) -> None:
    """Hands the module what it wants to know of the documents of each split; from the data's folder, if it is there.

    All ranks call it. Raises Stopped where one was asked to stop, ConfigError where the ranks share no folder.
    """
    asked, group = session.module.precompute, session.group
    if asked is None:
        return
    for split in splits:
        corpus: Corpus | None = getattr(data.prepared, split)
        if corpus is None:
            continue
        kept = data.prepared.folder / f"{asked.name}-{split}"
        if not group.from_main(kept.exists()):
            logger.info("%s: asked once for each of %d documents", asked.name, corpus.num_documents)
            _write(kept, asked, session, corpus, data.pad_id)
        if group.any(not kept.exists()):
            raise ConfigError(
                f"data.cache_dir: must be on a file system that all ranks share, got {session.config.data.cache_dir}, "
                f"where {asked.name} of rank 0 is not seen; set data.cache_dir to a shared folder"
            )
        asked.take(split, corpus, {name: np.load(kept / f"{name}.npy", mmap_mode="r") for name in asked.columns})


def _write(kept: Path, asked: Precompute, session: Session, corpus: Corpus, pad_id: int) -> None:
    group, is_main = session.group, session.group.ranks.is_main
    # Other runs may ask the same at the same time. The first one's stays, and is never replaced: it may be mapped by
    # now, and on NFS a file that another node removes is gone from under its readers. So no whole_folder here.
    aside = kept.with_name(f".{kept.name}.{uuid.uuid4().hex[:8]}.tmp")
    if is_main:
        sweep(kept.parent)
    # Written by one rank alone: on NFS, what two nodes write to one page of a file is not put together.
    files = _make(aside, asked.columns, corpus.num_targets) if is_main else {}
    ends = np.cumsum(corpus.target_counts)
    try:
        with asked.running():
            for batch in session.batches(corpus, pad_id):
                _, found = session.engine.evaluate(batch)
                shares = group.to_main(list(zip(batch.documents, found, strict=True)))
                for number, answers in (each for share in shares for each in share):
                    for name, values in answers.items():
                        files[name][ends[number] - len(values) : ends[number]] = values
                if group.any(session.stop.is_set):
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
