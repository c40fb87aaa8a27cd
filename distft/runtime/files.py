"""Files and folders that others read while they are written: whole at every instant, or not there.

What is being written stands beside its place under a name of its own, so that writers at the same time do not meet. A
killed one leaves it there: `sweep` removes what nobody has touched for an hour.
"""

import contextlib
import glob
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

DEAD_S = 3600.0
"""What is unfinished and untouched for so long is of a writer that was killed."""


def write_whole(path: Path, content: str | bytes) -> None:
    """Replaces the file at `path` by `content`, text in UTF-8. A reader finds the old content or the new, also after a
    kill or a crash of the machine; of several writers at once the last one's stays, whole.

    Raises OSError, and then leaves the old file as it was.
    """
    aside = _aside(path)
    try:
        with aside.open("wb") as opened:
            opened.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
            opened.flush()
            os.fsync(opened.fileno())  # without it a crash after the rename may leave an empty file
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: Path, *, alone: bool = False, replace: bool = False) -> Iterator[Path]:
    """A new folder beside `path` that takes its place at the end of the block, and is removed on any error.

    `alone`: the caller has a lock or owns the place, so what is unfinished there is of the dead and goes at once.
    `replace`: what stands at `path` makes way, and comes back where the new folder cannot take its place, or at the
    next call after a kill between the two renames. Raises OSError; FileExistsError where, without `replace`, something
    other than an empty folder stands at `path` by the end.
    """
    path = path.resolve()
    aside, old = _aside(path), path.with_name(f".{path.name}.old")
    if replace and old.exists() and not path.exists():
        old.rename(path)
    sweep(path.parent, glob.escape(path.name), 0.0 if alone else DEAD_S)
    aside.mkdir(parents=True)
    try:
        yield aside
        for each in [*aside.rglob("*"), aside]:
            if not each.is_symlink():
                fsync(each)
        if replace and path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        try:
            aside.rename(path)
        except OSError as error:
            if replace and old.exists():
                old.rename(path)
                raise
            if not path.exists():
                raise
            raise FileExistsError(error.errno, error.strerror, str(path)) from error
        fsync(path.parent)
        if replace:
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def sweep(folder: Path, pattern: str = "*", age_s: float = DEAD_S) -> None:
    """Removes what killed writers left in `folder` of names like `pattern`, once nobody has touched it for `age_s`."""
    for left in folder.glob(f".{pattern}.{'[0-9a-f]' * 8}.tmp"):
        with contextlib.suppress(OSError):  # its writer lives and is done; or it cannot be removed, and harms nobody
            touched = max(each.lstat().st_mtime for each in [left, *left.rglob("*")])
            if time.time() - touched < age_s:
                continue
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()


def fsync(path: Path) -> None:
    """Makes a file's content outlast a crash of the machine, or the renames in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
