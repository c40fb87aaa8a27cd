"""How changes of a layer are combined: equal ones stay, signs are elected, experts are each on their own."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from distft.merge.deltas import Delta, combined, factored, least_rank, side_by_side

PRUNING = ["ties", "dare_linear", "dare_ties", "magnitude_prune"]


def delta(seed: int, r: int = 3, experts: int = 2) -> Delta:
    draw = torch.Generator().manual_seed(seed)
    b = torch.randn(experts, 7, r, generator=draw, dtype=torch.float64)
    return Delta(b, torch.randn(experts, r, 5, generator=draw, dtype=torch.float64))


@pytest.mark.parametrize("method", PRUNING)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_equal_changes_merge_to_themselves(method, count):
    change = delta(0).dense()
    merged = combined([change] * count, [1 / count] * count, method, 1.0, torch.Generator())
    torch.testing.assert_close(merged, change)
    back = factored(merged, 3)
    torch.testing.assert_close(back.b @ back.a, change)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_what_dare_drops_is_there_on_average(method):
    change, draw = delta(0).dense(), torch.Generator().manual_seed(1)
    times = [combined([change], [1.0], method, 0.5, draw) for _ in range(4000)]
    mean = torch.stack(times).mean(0)
    assert (mean - change).norm() < 0.05 * change.norm()
    assert any((each == 0).float().mean() > 0.3 for each in times[:3])


def test_ties_is_the_mean_of_the_values_that_agree_times_the_sum_of_weights():
    changes = [torch.tensor([[[4.0, -4.0, 1.0, 9.0]]]), torch.tensor([[[2.0, 1.0, -3.0, -9.0]]])]
    merged = combined(changes, [0.25, 0.75], "ties", 1.0, torch.Generator())
    # Weighted: [1, -1, .25, 2.25] and [1.5, .75, -2.25, -6.75]: the larger sum elects the sign.
    torch.testing.assert_close(merged, torch.tensor([[[2.5, -4.0, -3.0, -9.0]]]))
    trimmed = combined(changes[:1], [1.0], "ties", 0.25, torch.Generator())
    torch.testing.assert_close(trimmed, torch.tensor([[[0.0, 0.0, 0.0, 9.0]]]))
    torch.testing.assert_close(combined(changes[:1], [-2.0], "ties", 1.0, torch.Generator()), -2 * changes[0])


def test_a_sum_takes_as_few_ranks_as_hold_it():
    first, second = delta(0), delta(1, r=2)
    both = side_by_side([first, second, first], [0.5, 2.0, -0.25])
    wanted = 0.25 * first.b @ first.a + 2 * second.b @ second.a
    torch.testing.assert_close(both.b @ both.a, wanted)
    least = least_rank(both)
    assert (both.rank, least.rank) == (8, 5)
    torch.testing.assert_close(least.b @ least.a, wanted)
    padded = least.of_rank(9)
    torch.testing.assert_close(padded.b @ padded.a, wanted)


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.zeros(3, 6, 4))

    def forward(self, states):
        return torch.einsum("e o i, b i -> b o", self.up, states)


def test_fused_experts_are_each_changed_as_peft_changes_them():
    model = nn.ModuleDict({"experts": Experts()})
    config = LoraConfig(r=2, lora_alpha=6, target_parameters=["experts.up"], init_lora_weights=False)
    layer = get_peft_model(model, config).base_model.model.experts
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    ours = Delta.of_factors(a, b, 3, layer.scaling["default"])
    torch.testing.assert_close(ours.dense(), layer.get_delta_weight("default"))
    back = Delta.of_factors(*least_rank(ours).factors(), 3, 1.0)
    torch.testing.assert_close(back.dense(), ours.dense())
