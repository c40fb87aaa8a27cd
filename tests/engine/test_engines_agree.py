"""Every engine and world size gives the gradients of one process."""

import engine_cases as cases
import pytest
import torch

from distft.config import schema

BASES = {"float32": {"dtype": "float32"}, "nf4": {"dtype": "float32", "quantization": "nf4"}}
TWO = [{"name": "fsdp"}, {"name": "zero2"}, {"name": "zero3"}]


@pytest.fixture(scope="module")
def reference(one_rank):
    """Loss and gradients of `single`, by base."""
    return {
        base: one_rank.run(cases.gradients, cases.config({"name": "single"}, model=model))[0]
        for base, model in BASES.items()
    }


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("engine", TWO, ids=lambda e: e["name"])
def test_gradients_on_two_ranks_are_those_of_one(two_ranks, reference, engine, base):
    loss, grads = reference[base]
    for rank_loss, rank_grads in two_ranks.run(cases.gradients, cases.config(engine, model=BASES[base])):
        assert rank_loss == pytest.approx(loss, rel=1e-6)
        assert rank_grads.keys() == grads.keys()
        assert max(relative(rank_grads[name], grads[name]) for name in grads) < 1e-5


@pytest.mark.parametrize("base", BASES)
def test_gradients_of_hsdp_two_by_two_are_those_of_one(four_ranks, reference, base):
    loss, grads = reference[base]
    config = cases.config({"name": "fsdp", "shard_size": 2}, model=BASES[base], data={"micro_batch": 1})
    for rank_loss, rank_grads in four_ranks.run(cases.gradients, config):
        assert rank_loss == pytest.approx(loss, rel=1e-6)
        assert max(relative(rank_grads[name], grads[name]) for name in grads) < 1e-5


@pytest.mark.machine
@pytest.mark.parametrize("engine", TWO, ids=lambda e: e["name"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_bfloat16_matmuls_keep_float32_masters_under_every_engine(one_rank, two_ranks, engine, method):
    changes = {
        "model": {"dtype": "bfloat16", "compute_dtype": "bfloat16"},
        "adapter": schema.Lora(method="lora", r=4, alpha=8) if method == "lora" else schema.Full(method="full"),
    }
    single, sharded = cases.config({"name": "single"}, **changes), cases.config(engine, **changes)
    loss, grads = one_rank.run(cases.gradients, single)[0]
    for rank_loss, rank_grads in two_ranks.run(cases.gradients, sharded):
        assert rank_loss == pytest.approx(loss, rel=1e-3)
        assert {g.dtype for g in rank_grads.values()} == {torch.float32}
        # bfloat16 has 8 bits: two engines round at other places.
        assert max(relative(rank_grads[name], grads[name]) for name in grads) < 0.05


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("engine", TWO, ids=lambda e: e["name"])
def test_training_on_two_ranks_follows_one(one_rank, two_ranks, engine, optimizer):
    optim = {"name": optimizer, "weight_decay": 0.1, "max_grad_norm": 0.5}
    reference = one_rank.run(cases.losses, cases.config({"name": "single"}, optim=optim))[0]
    assert reference[-1] < reference[0]
    for history in two_ranks.run(cases.losses, cases.config(engine, optim=optim)):
        assert history == pytest.approx(reference, rel=1e-4)
