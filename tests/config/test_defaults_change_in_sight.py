"""The resolved config of every shipped experiment is committed: a default that changes is a diff, never a surprise."""

import difflib

import pytest

from tests.config.goldens import EXPERIMENTS, FOLDER, resolved, write


def difference(golden: str, now: str) -> str:
    """What changed, as a unified diff with its key's neighbours; empty where nothing did."""
    lines = difflib.unified_diff(golden.splitlines(), now.splitlines(), "golden", "now", lineterm="", n=2)
    return "\n".join(lines)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_resolves_to_its_golden(experiment, in_empty_folder):
    file = FOLDER / f"{experiment}.yaml"
    changed = difference(file.read_text(encoding="utf-8") if file.exists() else "", resolved(experiment))
    if changed:
        pytest.fail(f"+exp={experiment} resolves to another config; meant? `make goldens`\n{changed}", pytrace=False)


def test_every_golden_is_of_a_shipped_experiment():
    assert sorted(file.stem for file in FOLDER.glob("*.yaml")) == EXPERIMENTS


def test_a_changed_default_is_shown_by_its_line_alone():
    now = resolved("llama_lora")
    changed = difference(now.replace("keep: 2", "keep: 3"), now).splitlines()
    assert [line for line in changed[2:] if line[0] in "+-"] == ["-  keep: 3", "+  keep: 2"]


def test_goldens_are_the_same_wherever_they_are_written(tmp_path, monkeypatch):
    """Nothing of the machine is in them: home, working folder, cores, launcher."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.cpu_count", lambda: 77)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(77)))
    write(tmp_path / "goldens")
    for file in FOLDER.glob("*.yaml"):
        assert (tmp_path / "goldens" / file.name).read_bytes() == file.read_bytes()
