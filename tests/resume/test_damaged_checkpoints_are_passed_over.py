"""A damaged or partial checkpoint is named, and the one before it is used."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from distft.run.damage import damage, manifest_entry
from distft.run.steps import published
from distft.run.tensors import write_tensors
from tests.resume import runs


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    folder = tmp_path / "step-00000002"
    folder.mkdir()
    files = write_tensors(folder / "adapter_model.safetensors", {"a": torch.ones(3)})
    (folder / "state.json").write_text('{"step": 2}')
    files["state.json"] = manifest_entry(folder / "state.json")
    (folder / "manifest.json").write_text(json.dumps({"files": files}, indent=2))
    assert damage(folder) == []
    return folder


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 0x10
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "state.json"])
def test_every_flipped_byte_is_found(checkpoint, name):
    size = (checkpoint / name).stat().st_size
    for at in range(size):
        flip(checkpoint / name, at)
        assert damage(checkpoint) == [f"{name} has another content than was written"]
        flip(checkpoint / name, at)


def test_every_flipped_byte_of_the_manifest_is_found_or_means_nothing(checkpoint):
    whole = (checkpoint / "manifest.json").read_bytes()
    for at in range(len(whole)):
        flip(checkpoint / "manifest.json", at)
        try:
            same = json.loads((checkpoint / "manifest.json").read_text()) == json.loads(whole)
        except ValueError:
            same = False
        assert bool(damage(checkpoint)) != same
        flip(checkpoint / "manifest.json", at)


def test_a_truncated_and_a_missing_file_are_named(checkpoint):
    content = (checkpoint / "state.json").read_bytes()
    (checkpoint / "state.json").write_bytes(content[:-1])
    assert damage(checkpoint) == [f"state.json has {len(content) - 1} bytes in place of {len(content)}"]
    (checkpoint / "state.json").unlink()
    assert damage(checkpoint) == ["state.json is missing"]
    (checkpoint / "manifest.json").unlink()
    assert damage(checkpoint) == ["manifest.json is missing"]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"files": []}', '{"files": {}}', '{"files": {"state.json": 3}}'])
def test_a_manifest_that_is_none_is_damage(checkpoint, content):
    (checkpoint / "manifest.json").write_text(content)
    assert "manifest.json" in damage(checkpoint)[0]


def test_other_folders_are_no_checkpoints(checkpoint):
    for name in ("damaged-step-00000004", ".step-00000006", "step-00000002.bak", "step-"):
        (checkpoint.parent / name).mkdir()
    assert published(checkpoint.parent) == [checkpoint]


def test_a_run_goes_back_to_the_one_before_and_ends_the_same(commands, tiny, tmp_path):
    words = tiny(tmp_path)
    assert commands.run(*words).code == 0
    run = tmp_path / "run"
    rows, adapter = runs.rows(run), runs.adapter(run)
    assert runs.steps(run) == [4, 6]

    flip(run / "checkpoints" / "step-00000006" / "optimizer.safetensors", -1)
    shutil.copytree(run / "checkpoints" / "step-00000004", run / "checkpoints" / ".step-00000005")
    again = commands.run(*words)
    assert again.code == 0, again.output
    assert "step-00000006 is damaged (optimizer.safetensors has another content than was written)" in again.output
    assert "from step-00000004" in again.output
    assert (runs.rows(run), runs.adapter(run), runs.steps(run)) == (rows, adapter, [4, 6])
    assert not list((run / "checkpoints").glob(".*"))

    for step in (4, 6):
        (run / "checkpoints" / f"step-{step:08d}" / "manifest.json").unlink()
    afresh = commands.run(*words)
    assert afresh.code == 0, afresh.output
    assert afresh.output.count("is damaged (manifest.json is missing)") == 2
    assert (runs.rows(run), runs.adapter(run)) == (rows, adapter)
    names = {path.name for path in (run / "checkpoints").glob("damaged-*")}
    assert names == {"damaged-step-00000004", "damaged-step-00000006", "damaged-step-00000006.1"}
