"""Files and folders that others read while they are written: whole at every instant, or not there."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Replaces the file at `path` by `content`, text in UTF-8. A reader finds the old content or the new, also after a
    kill or a crash of the machine; of several writers at once the last one's stays, whole.

    Raises OSError, and then leaves the old file as it was.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with aside.open("wb") as opened:
            opened.write(content.encode() if isinstance(content, str) else content)
            opened.flush()
            os.fsync(opened.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path` that takes its place at the end of the block, and is removed on any error.

    What stands at `path` is replaced; at no instant is there half a folder. Raises OSError.
    """
    aside, old = (path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{kind}") for kind in ("", ".old"))
    aside.mkdir(parents=True)
    try:
        yield aside
        fsync_folder(aside)
        if path.exists():
            path.rename(old)
        try:
            aside.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
        fsync_folder(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def fsync_folder(folder: Path) -> None:
    """Makes renames in `folder` last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
