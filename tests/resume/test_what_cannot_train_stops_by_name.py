"""A loss that is not finite, and a parameter without a gradient, end the run in a sentence that names them."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.resume import hooks, runs

ENGINES = [("single", 1), ("fsdp", 2), ("zero2", 2), ("zero3", 2)]


@pytest.mark.parametrize(("engine", "world_size"), [ENGINES[0], ENGINES[3]])
def test_a_nan_loss_names_step_rows_and_the_last_good_checkpoint(commands, tiny, tmp_path, engine, world_size):
    words = tiny(tmp_path, f"engine={engine}", "checkpoint.every=1")
    ended = commands.run(*words, world_size=world_size, hook=(hooks.nan_loss, 3))
    assert ended.code == 1, ended.output
    assert "error: loss and gradient must be finite, got loss nan" in ended.output
    assert "in step 3 (rows [" in ended.output and "optim.skip_nonfinite=1" in ended.output
    assert f"the last good checkpoint is {tmp_path / 'run' / 'checkpoints' / 'step-00000002'}:" in ended.output
    assert "Traceback" not in ended.output
    assert runs.steps(tmp_path / "run") == [1, 2]


@pytest.mark.parametrize(("engine", "world_size"), ENGINES)
def test_a_step_that_may_be_skipped_changes_nothing(commands, tiny, tmp_path, engine, world_size):
    often = ["checkpoint.every=1", "checkpoint.keep=9", "steps=4", "optim.schedule=constant"]
    words = tiny(tmp_path, f"engine={engine}", "optim.skip_nonfinite=1", *often)
    ended = commands.run(*words, world_size=world_size, hook=(hooks.nan_loss, 3))
    assert ended.code == 0, ended.output
    rows = runs.rows(tmp_path / "run", "train")
    assert [row["step"] for row in rows if row["loss"] is None] == [3]
    saved = tmp_path / "run" / "checkpoints"
    before, after, last = (load_file(saved / f"step-0000000{step}" / "adapter_model.safetensors") for step in (2, 3, 4))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(tensor.isfinite().all() for tensor in last.values())
    assert any(not torch.equal(after[name], last[name]) for name in last), "the next step is taken"
    assert json.loads((saved / "step-00000004" / "state.json").read_text())["skipped"] == 1


@pytest.mark.parametrize(("engine", "world_size"), [ENGINES[0], ENGINES[3]])
def test_a_parameter_without_a_gradient_is_named(commands, tiny, tmp_path, engine, world_size):
    module = "base_model.model.model.layers.1.mlp.down_proj.lora_B.default"
    ended = commands.run(*tiny(tmp_path, f"engine={engine}"), world_size=world_size, hook=(hooks.idle_module, module))
    assert ended.code == 1, ended.output
    assert "error: adapter: every parameter that trains must get a gradient, 2 had none in 3 steps" in ended.output
    for name in ("layers.1.mlp.down_proj.lora_A.weight", "layers.1.mlp.down_proj.lora_B.weight"):
        assert name in ended.output
    assert "Traceback" not in ended.output
