"""distft.evaluate lm_eval=: base and adapter are handed to lm-eval, which a stand-in with its interface plays here."""

import importlib.util
import json
from pathlib import Path

import command_runs
import pytest

EVALUATE = "distft.evaluate"
TEXT = "Say number 3 and the next"
STAND_IN = {
    "__init__.py": """
def simple_evaluate(model, tasks, num_fewshot):
    ids = model.tokenizer(TEXT, return_tensors="pt").input_ids
    loss = model.model(input_ids=ids, labels=ids).loss.item()
    numbers = {"alias": "toy", "loss,none": loss, "loss_stderr,none": 0.0, "shots,none": num_fewshot}
    return {"results": {task: numbers for task in tasks}}
""".replace("TEXT", repr(TEXT)),
    "tasks.py": "class TaskManager:\n    all_tasks = ['toy', 'other']\n",
    "models/__init__.py": "",
    "models/huggingface.py": """
class HFLM:
    def __init__(self, pretrained, tokenizer, batch_size):
        assert not pretrained.training and batch_size == 1
        self.model, self.tokenizer = pretrained, tokenizer
""",
}


@pytest.fixture
def packages(tmp_path) -> Path:
    for name, text in STAND_IN.items():
        file = tmp_path / "packages" / "lm_eval" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "packages"


def test_base_and_adapter_are_put_to_each_task(trained, child, base, packages):
    run = trained("lora")
    words = [f"run={run}", "lm_eval=[toy]", "shots=[0,2]"]
    done = child(command_runs.command_with_path, packages, EVALUATE, words)
    assert done.code == 0, done.err
    rows = json.loads((run / "lm_eval.json").read_text())["rows"]
    assert [(row["model"], row["shots"], row["task"]) for row in rows] == [
        ("base", 0, "toy"),
        ("base", 2, "toy"),
        ("lora", 0, "toy"),
        ("lora", 2, "toy"),
    ]
    assert [row["shots,none"] for row in rows] == [0, 2, 0, 2]
    for row, adapter in ((rows[0], None), (rows[2], run / "adapter")):
        assert row["loss,none"] == pytest.approx(child(command_runs.loss_of_text, base, adapter, TEXT), rel=1e-5)
    assert rows[0]["loss,none"] != rows[2]["loss,none"]


def test_a_base_that_the_adapter_took_a_part_of_is_left_out(trained, child, packages):
    run = trained("pissa")
    done = child(command_runs.command_with_path, packages, EVALUATE, [f"run={run}", "lm_eval=[toy]"])
    assert done.code == 0, done.err
    assert [row["model"] for row in json.loads((run / "lm_eval.json").read_text())["rows"]] == ["pissa"]


def test_unknown_tasks_are_named(trained, child, packages):
    words = [f"run={trained('lora')}", "lm_eval=[toy,tpy]"]
    done = child(command_runs.command_with_path, packages, EVALUATE, words)
    assert done.code == 2 and "lm_eval: must be tasks of lm-eval, got tpy" in done.err


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_without_the_package_its_extra_is_named(trained, command):
    done = command(EVALUATE, f"run={trained('lora')}", "lm_eval=[toy]")
    assert done.code == 2
    assert done.err.strip() == (
        "lm_eval: must have the package lm-eval, which is not installed; pip install 'distft[lm_eval]'"
    )
