"""Other optimizers, and the training of every weight, go on in the same bits too."""

import pytest

from distft.run.tensors import TensorFolder
from tests.resume import runs
from tests.resume.commands import count_calls

COURSE = ["optim.schedule=constant", "optim.warmup=0", "checkpoint.every=100"]
OPTIMS = {
    "sgd": ["optim=sgd"],
    "sgd-without-momentum": ["optim=sgd", "optim.momentum=0"],
    "adafactor": ["optim=adafactor"],
}


@pytest.mark.parametrize(
    ("engine", "world_size", "optim"),
    [*(("single", 1, optim) for optim in OPTIMS), ("fsdp", 2, "sgd"), ("zero3", 2, "sgd")],
)
def test_two_runs_of_two_steps_are_one_of_four(commands, tiny, tmp_path, engine, world_size, optim):
    for root, steps in (("whole", 4), ("cut", 2), ("cut", 4)):
        words = tiny(tmp_path / root, *COURSE, f"engine={engine}", *OPTIMS[optim], f"steps={steps}")
        ended = commands.run(*words, world_size=world_size)
        assert ended.code == 0, ended.output
    whole, cut = tmp_path / "whole" / "run", tmp_path / "cut" / "run"
    assert runs.rows(cut, "train") == runs.rows(whole, "train")
    assert runs.adapter(cut) == runs.adapter(whole)


@pytest.mark.parametrize("engine", ["fsdp", "zero3"])
def test_full_training_is_written_by_both_ranks_and_goes_on_in_the_same_bits(commands, tiny, tmp_path, engine):
    def full(root, *changes):
        words = tiny(tmp_path / root, "adapter=full", "optim.lr=0.001", *changes)
        return [word for word in words if not word.startswith("adapter.")]

    assert commands.run(*full("whole", "steps=4", f"engine={engine}"), world_size=2).code == 0
    again = full("cut", "steps=4", f"engine={engine}")
    for rank, at, function in [(1, 2, "manifest_entry"), (0, 3, "_step")]:
        killed = commands.run(*again, world_size=2, hook=(count_calls, str(tmp_path / "n"), rank, at, function))
        assert -9 in killed.codes, killed.output
    last = commands.run(*again, world_size=2)
    assert last.code == 0, last.output
    whole, cut = tmp_path / "whole" / "run", tmp_path / "cut" / "run"
    assert runs.rows(cut) == runs.rows(whole)
    parts = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert [runs.adapter(cut, part) for part in parts] == [runs.adapter(whole, part) for part in parts]
    sizes = [(cut / "adapter" / part).stat().st_size for part in parts]
    assert max(sizes) < 1.5 * min(sizes), "each rank writes about half"

    ended = commands.run(*full("cut", "steps=5", "engine=single"))
    assert ended.code == 0, ended.output
    assert "from step-00000004" in ended.output
    two, one = (TensorFolder(cut / "checkpoints" / f"step-0000000{step}", "model") for step in (4, 5))
    assert set(one.names) == set(two.names)
    assert {name: one.shape(name) for name in one.names} == {name: two.shape(name) for name in two.names}
