"""Bad input ends the command: its exit code, one message with key, value and fix, no traceback, nothing half-written.

What each message says in detail is tested where it is made (tests/config, tests/data, tests/resume).
"""

import json
from pathlib import Path

import pytest

from tests.resume.tiny_run import SHAPE, commands, tiny, write_dialogues

__all__ = ["commands", "tiny"]

ROW = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}'
CASES = {
    "misspelt key": (["optim.lrr=1"], "optim.lrr", "optim.lr"),
    "misspelt option": (["adapter=lorra"], "adapter=lorra", "did you mean lora?"),
    "missing dataset": (["data.train=FILES/gone.jsonl"], "data.train", "gone.jsonl"),
    "broken line": (["data.train=FILES/broken.jsonl"], "data.train", "broken.jsonl, line 2"),
    "other columns": (["data.train=FILES/columns.jsonl"], "data.train", "got question, answer"),
    "empty dataset": (["data.train=FILES/empty.jsonl"], "data.train", "must have rows"),
    "all rows filtered": (["data.max_length=4", "data.too_long=drop"], "data.train", "longer than 4 tokens"),
    "model without weights": (["model.random_init=null", "model.source=FILES/bare"], "model.source", "*.safetensors"),
    "damaged weights": (["model.random_init=null", "model.source=FILES/damaged"], "model.source", "model.safetensors"),
    "missing model": (["model.random_init=null", "model.source=./gone"], "model.source", "./gone"),
    "nf4 of what trains": (["model.quantization=nf4", "adapter=full"], "model.quantization", "adapter=lora"),
    "rows beyond the context": (["data.max_length=512"], "data.max_length", "data.max_length=256"),
    "run folder below a file": (["run_root=FILES/broken.jsonl"], "run_root", "must be a folder that can be written"),
    "checkpoint that is not there": (["resume=FILES/step-00000001"], "resume", "step-00000001; did you mean"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    (folder / "broken.jsonl").write_text(ROW + '\n{"messages": [\n' + ROW + "\n")
    (folder / "columns.jsonl").write_text('{"question": "Hi", "answer": "Hello"}\n')
    (folder / "empty.jsonl").write_text("")
    for name in ("bare", "damaged"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(shape()))
    (folder / "damaged" / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    return folder


def shape() -> dict:
    import yaml

    return yaml.safe_load(SHAPE)


@pytest.mark.parametrize("case", CASES)
def test_exit_2_and_nothing_written(commands, tiny, files, tmp_path, case):
    changes, key, told = CASES[case]
    words = tiny(tmp_path / "runs", *(change.replace("FILES", str(files)) for change in changes))
    if "adapter=full" in words:
        words = [word for word in words if not word.startswith("adapter.")]
    if case in ("model without weights", "damaged weights"):
        source = next(word for word in words if word.startswith("model.source=")).partition("=")[2]
        folder = files / ("bare" if "without" in case else "damaged")
        for file in Path(source).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    refused = commands.run(*words)
    assert refused.code == 2, refused.output
    assert refused.output.startswith(f"error: {key}"), refused.output
    assert told in refused.output
    assert len(refused.output.strip().splitlines()) == 1, refused.output
    assert not (tmp_path / "runs").exists()
    assert not (files / "broken.jsonl" / "run").exists()


def test_all_problems_come_at_once_and_from_one_rank(commands, tiny, tmp_path):
    words = tiny(tmp_path / "runs", "data.global_batch=3", "optim.lr=-1", "seed=x")
    refused = commands.run(*words, world_size=2)
    assert refused.code == 2, refused.output
    assert refused.output.startswith("error: 3 problems\n")
    for key in ("data.global_batch", "optim.lr", "seed"):
        assert refused.output.count(f"  - {key}: ") == 1
    assert not (tmp_path / "runs").exists()


def test_a_run_folder_that_cannot_be_made_ends_with_its_name(commands, tiny):
    ended = commands.run(*tiny(Path("/proc/nowhere")))
    assert ended.code in (1, 2), ended.output
    assert ended.output.startswith("error: ") and "/proc/nowhere" in ended.output
    assert "Traceback" not in ended.output


@pytest.mark.parametrize("file", ["config.yaml", "environment.json"])
@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_a_damaged_file_in_the_run_folder_is_named(commands, tiny, tmp_path, file, content):
    words = tiny(tmp_path, "steps=2")
    assert commands.run(*words).code == 0
    (tmp_path / "run" / file).write_text(content)
    ended = commands.run(*words)
    assert ended.code == 2, ended.output
    assert f"{tmp_path / 'run' / file}" in ended.output and ended.output.startswith("error: name: ")
    assert "Traceback" not in ended.output
    assert (tmp_path / "run" / file).read_text() == content


def test_no_space_left_at_the_start_is_told_in_a_line(commands, tiny, tmp_path):
    ended = commands.run(*tiny(tmp_path), hook=(no_space,))
    assert ended.code == 1, ended.output
    assert ended.output.strip().endswith("No space left on device; free space, then run the same command again")
    assert "Traceback" not in ended.output
    assert commands.run(*tiny(tmp_path)).code == 0


def no_space(global_rank: int) -> None:
    """The first file that the run folder gets finds no room."""
    import os

    from distft.run.owner import Owner

    def write(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    Owner._write = write


def test_data_without_a_reply_is_refused(commands, tiny, tmp_path):
    rows = [json.loads(line) for line in write_dialogues(tmp_path / "a.jsonl", 1).read_text().splitlines()]
    silent = [{"messages": row["messages"][:1]} for row in rows]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, silent)))
    refused = commands.run(*tiny(tmp_path / "runs", f"data.train={tmp_path / 'a.jsonl'}"))
    assert refused.code == 2, refused.output
    assert "no supervised token" in refused.output and not (tmp_path / "runs").exists()
