"""Checkpoints know no engine and no world size: single -> fsdp x2 -> zero2 x2 -> zero3 x2 -> single is one course."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.resume import hooks, runs

CHAIN = [("single", 1), ("fsdp", 2), ("zero2", 2), ("zero3", 2), ("single", 1)]
COURSE = ["adapter.dropout=0", "optim.schedule=constant", "optim.warmup=0", "optim.lr=0.001", "checkpoint.keep=9"]


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm().clamp(min=1e-12)).item()


@pytest.fixture(scope="module", params=["lora", "qlora"])
def chain(request, commands, tiny, tmp_path_factory):
    """The folder of a run of one process, and of one that changes its engine after every step."""
    folder = tmp_path_factory.mktemp(request.param)
    course = [*COURSE, f"model.quantization={'none' if request.param == 'lora' else 'nf4'}"]
    hook = (hooks.keep_gradients, str(folder / "single"))
    whole = tiny(folder / "one", *course, "engine=single", "data.micro_batch=2", "steps=5", "checkpoint.every=1")
    one = commands.run(*whole, hook=hook)
    assert one.code == 0, one.output
    for number, (engine, world_size) in enumerate(CHAIN, start=1):
        hook = (hooks.keep_gradients, str(folder / "linked"))
        words = tiny(folder / "many", *course, f"engine={engine}", f"steps={number}")
        many = commands.run(*words, world_size=world_size, hook=hook)
        assert many.code == 0, many.output
    return folder


def test_the_rows_are_the_same(chain):
    one, many = (runs.rows(chain / name / "run", "train") for name in ("one", "many"))
    for row, other in zip(one, many, strict=True):
        assert {key: row[key] for key in ("step", "lr", "tokens", "target_tokens")} == {
            key: other[key] for key in ("step", "lr", "tokens", "target_tokens")
        }
        assert other["loss"] == pytest.approx(row["loss"], rel=1e-5)
    engines = [
        json.loads((chain / "many" / "run" / "checkpoints" / f"step-{n:08d}" / "state.json").read_text())["engine"]
        for n in range(1, 6)
    ]
    assert engines == [engine for engine, _ in CHAIN]


@pytest.mark.parametrize("number", range(1, len(CHAIN) + 1))
def test_gradients_after_each_change_are_those_of_one_process(chain, number):
    ours, theirs = load_file(chain / f"linked-{number}"), load_file(chain / f"single-{number}")
    assert ours.keys() == theirs.keys()
    assert max(relative(ours[name], theirs[name]) for name in theirs) < 1e-5


@pytest.mark.parametrize("number", range(1, len(CHAIN) + 1))
@pytest.mark.parametrize("file", ["adapter_model", "optimizer"])
def test_weights_and_moments_after_each_change_are_those_of_one_process(chain, file, number):
    ours, theirs = (
        load_file(chain / name / "run" / "checkpoints" / f"step-{number:08d}" / f"{file}.safetensors")
        for name in ("many", "one")
    )
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in theirs.items()}
    assert max(relative(ours[name], theirs[name]) for name in theirs) < 1e-4
