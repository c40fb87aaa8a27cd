"""No space left while saving: the training goes on or ends with a clear error, and earlier checkpoints stay."""

import subprocess

import pytest

from distft.run.damage import damage
from tests.resume import hooks, runs


def intact(run, steps):
    assert runs.steps(run) == steps
    assert [damage(run / "checkpoints" / f"step-{step:08d}") for step in steps] == [[] for _ in steps]
    assert not list((run / "checkpoints").glob(".*")), "nothing half-written stays"


@pytest.mark.parametrize("kind", ["OSError", "SafetensorError"])
def test_the_run_goes_on_where_a_later_save_succeeds(commands, tiny, tmp_path, kind):
    ended = commands.run(*tiny(tmp_path), hook=(hooks.disk_full, [2], kind))
    assert ended.code == 0, ended.output
    assert "saving step 4 to" in ended.output and "No space left on device" in ended.output
    assert "the run goes on, earlier checkpoints are intact" in ended.output
    intact(tmp_path / "run", [2, 6])


@pytest.mark.parametrize(("engine", "world_size"), [("single", 1), ("fsdp", 2)])
def test_without_its_last_checkpoint_a_run_has_failed(commands, tiny, tmp_path, engine, world_size):
    words = tiny(tmp_path, f"engine={engine}", "steps=5")
    ended = commands.run(*words, world_size=world_size, hook=(hooks.disk_full, [3, 4]))
    assert ended.code == 1, ended.output
    assert "error: checkpoint.every: saving step 5 to" in ended.output and "free space, then run again" in ended.output
    assert "Traceback" not in ended.output
    intact(tmp_path / "run", [2, 4])
    assert commands.run(*words, world_size=world_size).code == 0
    assert [row["step"] for row in runs.rows(tmp_path / "run", "train")] == [1, 2, 3, 4, 5]


def test_a_disk_that_is_really_full_ends_the_run_and_space_lets_it_go_on(commands, tiny, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("may not mount a file system of its own")
    try:
        full = commands.run(*tiny(disk), hook=(hooks.fill_disk, str(disk), 4))
        assert full.code == 1, full.output
        assert "No space left on device" in full.output and "free space" in full.output
        assert "Traceback" not in full.output
        intact(disk / "run", [2])
        (disk / "filler").unlink()
        again = commands.run(*tiny(disk))
        assert again.code == 0, again.output
        assert commands.run(*tiny(tmp_path / "whole")).code == 0
        assert runs.rows(disk / "run") == runs.rows(tmp_path / "whole" / "run")
        assert runs.adapter(disk / "run") == runs.adapter(tmp_path / "whole" / "run")
    finally:
        subprocess.run(["umount", disk], check=True)
