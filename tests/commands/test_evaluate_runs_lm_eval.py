"""distft.evaluate lm_eval=: base and adapter are put to a task of lm-eval, with the numbers of the plain models."""

import json
import math
from pathlib import Path

import command_runs
import pytest

EVALUATE = "distft.evaluate"
ROWS = [("Say number 3", "and the next"), ("Say number 5", "is five")]
TASK = """\
task: toy
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}, train: {rows}}}}}
output_type: loglikelihood
training_split: train
test_split: test
doc_to_text: "{{{{text}}}}"
doc_to_target: " {{{{target}}}}"
metric_list:
  - {{metric: perplexity, aggregation: perplexity, higher_is_better: false}}
"""


@pytest.fixture
def task(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text, "target": target}) + "\n" for text, target in ROWS))
    (tmp_path / "tasks").mkdir()
    file = tmp_path / "tasks" / "toy.yaml"
    file.write_text(TASK.format(rows=rows))
    return file


def test_base_and_adapter_are_put_to_each_task(trained, command, child, base, task):
    run = trained("lora")
    done = command(EVALUATE, f"run={run}", f"lm_eval=[{task}]", "shots=[0,1]")
    assert done.code == 0, done.err
    rows = json.loads((run / "lm_eval.json").read_text())["rows"]
    assert [(row["model"], row["shots"], row["task"]) for row in rows] == [
        ("base", 0, "toy"),
        ("base", 1, "toy"),
        ("lora", 0, "toy"),
        ("lora", 1, "toy"),
    ]
    for row, adapter in ((rows[0], None), (rows[2], run / "adapter")):
        losses = [child(command_runs.loss_of_target, base, adapter, text, f" {target}") for text, target in ROWS]
        assert row["perplexity,none"] == pytest.approx(math.exp(sum(losses) / 2), rel=1e-3)
    assert len({row["perplexity,none"] for row in rows}) == 4, "adapter and shots make a difference"


def test_a_base_that_the_adapter_took_a_part_of_is_left_out(trained, command, task):
    run = trained("pissa")
    done = command(EVALUATE, f"run={run}", f"lm_eval=[{task}]")
    assert done.code == 0, done.err
    assert [row["model"] for row in json.loads((run / "lm_eval.json").read_text())["rows"]] == ["pissa"]


def test_unknown_tasks_and_missing_files_are_named(trained, command, task):
    done = command(EVALUATE, f"run={trained('lora')}", f"lm_eval=[{task},no_such_task]")
    assert done.code == 2 and "lm_eval: must be names of lm-eval's tasks" in done.err and "no_such_task" in done.err
    done = command(EVALUATE, f"run={trained('lora')}", "lm_eval=[missing.yaml]")
    assert done.code == 2 and "got missing.yaml; check the path" in done.err


def test_without_the_package_its_extra_is_named(trained, child):
    done = child(command_runs.command_without, "lm_eval", EVALUATE, [f"run={trained('lora')}", "lm_eval=[toy]"])
    assert done.code == 2
    assert "lm_eval: must have the package lm-eval, which is not installed; pip install 'distft[lm_eval]'" in done.err
