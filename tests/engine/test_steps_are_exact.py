"""One step is the gradient of the mean token loss, however its documents are packed, padded or split up."""

import engine_cases
import exact_cases
import pytest
import torch

SINGLE = {"name": "single"}


def config(**changes):
    return engine_cases.config(SINGLE, **changes)


def assert_same(ours, theirs, tolerance):
    assert ours[0] == pytest.approx(theirs[0], rel=tolerance)
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in theirs[1].items():
        torch.testing.assert_close(
            ours[1][name], gradient, rtol=tolerance, atol=tolerance * gradient.abs().max().item()
        )


@pytest.mark.parametrize("attention", ["varlen", "sdpa"])
@pytest.mark.parametrize("micro_batch", [1, 2, 8])
def test_packed_rows_in_any_micro_batch_give_the_gradient_of_documents_alone(one_rank, micro_batch, attention):
    case = config(data={"micro_batch": micro_batch}, model={"attention": attention})
    reference = one_rank.run(exact_cases.reference_gradients, config())[0]
    assert_same(one_rank.run(exact_cases.engine_gradients, case)[0], reference, 1e-10)


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_padded_rows_give_the_gradient_of_documents_alone(one_rank, micro_batch):
    case = config(data={"micro_batch": micro_batch, "packing": False})
    reference = one_rank.run(exact_cases.reference_gradients, case)[0]
    assert_same(one_rank.run(exact_cases.engine_gradients, case)[0], reference, 1e-10)


@pytest.mark.parametrize("attention", ["varlen", "sdpa", "eager"])
def test_no_token_of_one_document_moves_a_logit_of_another(one_rank, attention):
    case = config(model={"attention": attention})
    before, ends = one_rank.run(exact_cases.document_logits, case, None)[0]
    assert len(ends) > 3, "the row must hold several documents"
    after, _ = one_rank.run(exact_cases.document_logits, case, 1)[0]
    moved = (before != after).any(dim=1)
    inside = torch.zeros_like(moved)
    inside[ends[1] : ends[2]] = True
    assert moved[inside].all(), "the probe must reach its own document"
    torch.testing.assert_close(after[~inside], before[~inside], rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["full", "selective"])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_recomputation_gives_the_same_gradients_with_dropout_on(one_rank, mode, quantization):
    adapter = {"method": "lora", "r": 4, "dropout": 0.2}
    plain = config(adapter=adapter, model={"quantization": quantization})
    again = config(adapter=adapter, model={"quantization": quantization, "gradient_checkpointing": mode})
    reference = one_rank.run(exact_cases.recomputed_gradients, plain)[0]
    for name, gradient in one_rank.run(exact_cases.recomputed_gradients, again)[0].items():
        torch.testing.assert_close(gradient, reference[name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("engine", ["fsdp", "zero3"])
def test_nf4_bytes_survive_sharding_and_training_and_each_rank_holds_its_share(two_ranks, engine, compute):
    case = engine_cases.config({"name": engine}, model={"quantization": "nf4", "compute_dtype": compute}, steps=1)
    for planted, gathered, held in two_ranks.run(exact_cases.planted_bytes, case):
        assert planted
        for key, bytes_before in planted.items():
            assert gathered[key].dtype == torch.uint8
            assert torch.equal(gathered[key].flatten(), bytes_before)
            assert held[key] <= len(bytes_before) / 2 + 64
