"""Whoever reads while others write, are killed or fail finds the old content or the new."""

import ast
import errno
import functools
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from distft.runtime.files import DEAD_S, sweep, whole_folder, write_whole

ROOT = Path(__file__).parents[2]
ASIDE = (
    "distft/runtime/files.py",
    "distft/runtime/hang.py",  # the stacks' file: faulthandler's own thread writes it
    "distft/run/checkpoints.py",  # all ranks write into one folder, and the best are pruned
    "distft/run/steps.py",  # a checkpoint that is damaged or superseded
    "distft/session/precompute.py",  # several runs race, and the folder of the first one may be mapped already
)
"""The files that rename; no other writes aside and then renames."""

WRITER = (
    "import sys; from pathlib import Path; from distft.runtime.files import write_whole\n"
    "while True: write_whole(Path(sys.argv[1]), sys.argv[2] * 200_000)"
)


def leftover(path: Path, age_s: float = 0.0) -> Path:
    """What a killed writer of `path` leaves."""
    left = path.with_name(f".{path.name}.0123abcd.tmp")
    (left / "inside").mkdir(parents=True)
    (left / "inside" / "file").touch()
    for each in (left, left / "inside", left / "inside" / "file"):
        os.utime(each, (time.time() - age_s,) * 2)
    return left


def test_a_reader_finds_one_writer_s_content_whole_whoever_is_killed(tmp_path):
    file, whole = tmp_path / "a.json", {letter * 200_000 for letter in "xy"}
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, file, letter]) for letter in "xy"]
    seen = []
    try:
        end = time.monotonic() + 20
        while (len(seen) < 200 or set(seen) != whole) and time.monotonic() < end:
            seen += [file.read_text()] if file.exists() else []
        assert all(writer.poll() is None for writer in writers), "both write all the time"
    finally:
        for writer in writers:
            writer.kill()
            assert writer.wait() == -signal.SIGKILL
    seen.append(file.read_text())
    assert len(seen) > 200
    assert set(seen) == whole


def test_text_is_utf_8_and_a_name_that_is_no_text_is_the_same_when_read_again(tmp_path):
    write_whole(tmp_path / "a", "数据 ü")
    assert (tmp_path / "a").read_bytes() == b"\xe6\x95\xb0\xe6\x8d\xae \xc3\xbc"
    path = {"path": os.fsdecode(b"/data/\xff.jsonl")}
    for dump, load in (
        (lambda it: json.dumps(it, ensure_ascii=False), json.loads),
        (lambda it: yaml.safe_dump(it, allow_unicode=True), yaml.safe_load),
    ):
        write_whole(tmp_path / "b", dump(path))
        assert load((tmp_path / "b").read_text(encoding="utf-8")) == path


def test_a_write_that_fails_leaves_the_old_content_and_nothing_beside_it(tmp_path, monkeypatch):
    write_whole(tmp_path / "a", "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "a", "new")
    with pytest.raises(OSError, match="No space left"), whole_folder(tmp_path / "b") as folder:
        (folder / "file").touch()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done: list[str] = []
    fsync, rename, replace = os.fsync, Path.rename, Path.replace
    monkeypatch.setattr(
        os, "fsync", lambda n: (done.append(f"fsync {Path(f'/proc/self/fd/{n}').readlink()}"), fsync(n))
    )
    monkeypatch.setattr(Path, "rename", lambda self, to: (done.append(f"rename {self} {to}"), rename(self, to)))
    monkeypatch.setattr(Path, "replace", lambda self, to: (done.append(f"rename {self} {to}"), replace(self, to)))
    write_whole(tmp_path / "a", "text")
    aside = done[0].removeprefix("fsync ")
    assert done == [f"fsync {aside}", f"rename {aside} {tmp_path / 'a'}"]
    done.clear()
    with whole_folder(tmp_path / "b") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").touch()
    written = {f"fsync {each}" for each in (folder, folder / "sub", folder / "sub" / "file")}
    assert set(done[:3]) == written
    assert done[3:] == [f"rename {folder} {tmp_path / 'b'}", f"fsync {tmp_path}"]


def test_a_folder_is_there_with_all_its_files_or_not_at_all(tmp_path):
    with pytest.raises(FileNotFoundError), whole_folder(tmp_path / "made") as folder:
        (folder / "half").write_text((folder / "nothing").read_text())
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "made").mkdir()
    with whole_folder(tmp_path / "made") as folder:
        (folder / "file").touch()
        assert list((tmp_path / "made").iterdir()) == []
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "file"]


def test_what_another_made_meanwhile_is_not_touched_but_where_it_is_to_be_replaced(tmp_path):
    def make(**options: bool) -> None:
        with whole_folder(tmp_path / "made", **options) as folder:
            (folder / "ours").touch()
            (tmp_path / "made").mkdir(exist_ok=True)
            (tmp_path / "made" / "theirs").touch()

    with pytest.raises(FileExistsError) as told:
        make()
    assert told.value.filename == str(tmp_path / "made")
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "theirs"]
    make(alone=True, replace=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "ours"]


def test_a_link_to_a_folder_on_another_disk_stays_one(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "made")
    with whole_folder(tmp_path / "link") as folder:
        assert folder.parent == tmp_path / "disk"
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "made").is_dir()


def test_unfinished_work_is_swept_once_nobody_can_be_at_it(tmp_path):
    fresh, other = leftover(tmp_path / "a"), tmp_path / ".claim"
    leftover(tmp_path / "b", DEAD_S + 60)
    other.touch()
    os.utime(other, (0, 0))
    sweep(tmp_path)
    assert set(tmp_path.iterdir()) == {fresh, other}
    os.utime(fresh, (0, 0))  # its files are written to all the same
    with whole_folder(tmp_path / "a"):
        assert fresh.exists()
    (tmp_path / "a").rmdir()
    with whole_folder(tmp_path / "a", alone=True):
        assert not fresh.exists()


@pytest.mark.parametrize("umask", [0o077, 0o022])
def test_who_may_read_is_the_umask_s_to_say(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "file", "a")
        with whole_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file", "folder")]
    assert modes == [0o666 & ~umask, 0o777 & ~umask]


@functools.cache
def calls() -> list[tuple[str, str, ast.Call]]:
    """Every call in distft and launch: its file, what is called as it is written, and the call."""
    files = [file for part in ("distft", "launch") for file in sorted((ROOT / part).rglob("*.py"))]
    nodes = [(file, node) for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    return [(str(f.relative_to(ROOT)), ast.unparse(n.func), n) for f, n in nodes if isinstance(n, ast.Call)]


def test_nobody_else_writes_aside_and_renames():
    found = set()
    for file, called, call in calls():
        renames = called.endswith((".rename", ".renames", "shutil.move"))
        if renames or (called.endswith(".replace") and len(call.args) == 1 and not call.keywords):  # str's has two
            found.add(file)
    assert found == set(ASIDE)


def test_every_text_that_is_read_or_written_names_its_encoding():
    found = []
    for file, called, call in calls():
        keys, name = {keyword.arg for keyword in call.keywords}, called.rpartition(".")[2]
        modes = [each.value for each in call.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        if name in ("read_text", "write_text") or (name in ("open", "fdopen") and not any("b" in m for m in modes)):
            found += (
                []
                if "encoding" in keys or called in ("os.open", "Session.open")
                else [f"{file}:{call.lineno} {called}"]
            )
        if called.startswith("subprocess."):
            found += [f"{file}:{call.lineno} {called}"] if keys & {"text", "universal_newlines"} else []
    assert found == []


def test_a_folder_that_cannot_be_replaced_comes_back(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").touch()
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise PermissionError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError), whole_folder(tmp_path / "a", alone=True, replace=True) as folder:
        (folder / "new").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a" / "old").exists()


def test_a_kill_between_the_two_renames_is_mended_by_the_next_call(tmp_path):
    (tmp_path / ".a.old").mkdir()
    (tmp_path / ".a.old" / "old").touch()
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "a", alone=True, replace=True):
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a" / "old").exists()
