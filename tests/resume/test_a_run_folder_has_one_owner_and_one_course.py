"""Who may go on with a run, and with what: one process at a time, the same base, data, adapter and seed."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from distft.run.status import Status
from tests.resume import hooks, runs
from tests.resume.tiny_run import write_dialogues


def test_a_second_process_is_refused_and_the_owner_s_death_frees_the_folder(commands, tiny, tmp_path):
    words = tiny(tmp_path, "steps=5000", "optim.schedule=constant", "checkpoint.keep=9999")
    owner = commands.start(*words)
    owner.wait_for(tmp_path / "run" / "metrics.jsonl", '"step": 3, "split": "train"')
    before = (tmp_path / "run" / "config.yaml").stat().st_mtime_ns
    second = commands.run(*words)
    assert second.code == 2, second.output
    card = json.loads((tmp_path / "run" / "owner.json").read_text())
    told = f"belongs to process {owner.processes[0].pid} on {card['host']}, started {card['since']}; wait for it to end"
    assert told in second.output
    assert (tmp_path / "run" / "config.yaml").stat().st_mtime_ns == before

    owner.wait_for(tmp_path / "run" / "checkpoints" / "step-00000002" / "manifest.json", "state.json")
    owner.signal(0, signal.SIGKILL)
    assert owner.end().codes == [-9]
    done = max(runs.steps(tmp_path / "run"))
    third = commands.run(*tiny(tmp_path, f"steps={done + 2}", "optim.schedule=constant"))
    assert third.code == 0, third.output
    assert f"from step-{done:08d}" in third.output


@pytest.fixture(scope="module")
def begun(commands, tiny, tmp_path_factory):
    """A finished run of four steps and its data file, to be copied."""
    folder = tmp_path_factory.mktemp("begun")
    data = write_dialogues(folder / "own.jsonl", 3)
    ended = commands.run(*tiny(folder, f"data.train={data}", "steps=4", "optim.schedule=constant"))
    assert ended.code == 0, ended.output
    return folder


@pytest.fixture
def again(begun, tiny, tmp_path):
    """The words that go on with a copy of that run."""
    shutil.copytree(begun / "run", tmp_path / "run")
    return lambda *changes: tiny(
        tmp_path, f"data.train={begun / 'own.jsonl'}", "steps=4", "optim.schedule=constant", *changes
    )


def snapshot(folder: Path) -> dict[str, bytes]:
    """All files but those that say who came by, and when."""
    passing = ("owner.json", ".now", "status.json")
    files = [p for p in folder.rglob("*") if p.is_file() and p.parent.name != "logs" and p.name not in passing]
    return {str(p): p.read_bytes() for p in files} | {"state": Status.read(folder).state.encode()}


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("model.dtype=bfloat16", "model.dtype"),
        ("model.quantization=nf4", "model.quantization"),
        ("adapter.r=8", "adapter.r"),
        ("adapter=dora", "adapter.dora"),
        ("data.max_length=128", "data.max_length"),
        ("data.global_batch=8", "data.global_batch"),
        ("seed=1", "seed"),
        ("optim=sgd", "optim.name"),
        ("resume=never", "resume"),
    ],
)
def test_another_course_is_refused_by_name(commands, again, tmp_path, change, key):
    before = snapshot(tmp_path / "run")
    refused = commands.run(*again(change))
    assert refused.code == 2, refused.output
    assert refused.output.startswith(f"error: {key}: ")
    assert "another name=" in refused.output and "Traceback" not in refused.output
    assert snapshot(tmp_path / "run") == before


def test_data_of_another_content_under_the_same_name_is_refused(commands, begun, again, tmp_path):
    content = (begun / "own.jsonl").read_bytes()
    before = snapshot(tmp_path / "run")
    try:
        write_dialogues(begun / "own.jsonl", 4)
        refused = commands.run(*again())
    finally:
        (begun / "own.jsonl").write_bytes(content)
    assert refused.code == 2, refused.output
    assert "error: data.train: content must stay what the run began with" in refused.output
    assert snapshot(tmp_path / "run") == before


def test_a_changed_rate_is_taken_with_a_warning(commands, again, tmp_path):
    taken = commands.run(*again("steps=5", "optim.lr=0.002"))
    assert taken.code == 0, taken.output
    assert "warning: optim.lr: changed from 0.01 to 0.002" in taken.output
    assert [row["lr"] for row in runs.rows(tmp_path / "run", "train")][2:] == [0.01, 0.01, 0.002]


def test_the_run_keeps_its_id(commands, again, tmp_path):
    file = tmp_path / "run" / "environment.json"
    before = json.loads(file.read_text())["run_id"]
    assert commands.run(*again("steps=5")).code == 0
    assert json.loads(file.read_text())["run_id"] == before
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-00000005" / "state.json").read_text())
    assert state["run_id"] == before


def test_a_path_goes_back_to_that_checkpoint_and_the_same_command_goes_on_from_there(commands, again, tmp_path):
    run = tmp_path / "run"
    path = run / "checkpoints" / "step-00000002"
    other = again("optim.lr=0.003", f"resume={path}", "checkpoint.keep=5")
    stopped = commands.run(*other, hook=(hooks.signal_in_step, 0, 3, signal.SIGTERM))
    assert stopped.code == 75, stopped.output
    assert "from step-00000002" in stopped.output and "kept as superseded-step-00000004" in stopped.output
    assert runs.steps(run) == [2, 3]
    goes_on = commands.run(*other)
    assert goes_on.code == 0, goes_on.output
    assert "from step-00000003" in goes_on.output
    assert [(row["step"], row["lr"]) for row in runs.rows(run, "train")][2:] == [(3, 0.003), (4, 0.003)]
    assert runs.steps(run) == [2, 3, 4]


def test_a_path_into_another_run_is_held_to_the_same_rules(commands, again, tiny, begun, tmp_path):
    path = tmp_path / "run" / "checkpoints" / "step-00000002"
    taken = commands.run(*again("name=new", f"resume={path}"))
    assert taken.code == 0, taken.output
    assert [row["step"] for row in runs.rows(tmp_path / "new", "train")] == [3, 4]
    assert runs.adapter(tmp_path / "new") == runs.adapter(tmp_path / "run")

    refused = commands.run(*again("name=newer", f"resume={path}", "adapter.r=8"))
    assert refused.code == 2 and refused.output.startswith("error: adapter.r: "), refused.output
    (tmp_path / "run" / "config.yaml").unlink()  # as if the checkpoint had been copied out of its run
    refused = commands.run(*again("name=newer", f"resume={path}", "adapter.r=8"))
    assert refused.code == 2, refused.output
    assert "error: resume: checkpoint must hold exactly the parameters that train" in refused.output
    refused = commands.run(*tiny(tmp_path, "name=newer", f"resume={path}"))
    assert refused.code == 2, refused.output
    assert "error: data.train: content must stay what the run began with" in refused.output
    (path / "optimizer.safetensors").write_bytes(b"")
    refused = commands.run(*again("name=newer", f"resume={path}"))
    assert refused.code == 2, refused.output
    assert "is damaged (optimizer.safetensors has 0 bytes" in refused.output
    assert not (tmp_path / "newer").exists(), "nothing is written"
