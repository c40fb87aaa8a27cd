"""token_loss against F.cross_entropy on the full logits."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from distft.task import loss as loss_module
from distft.task.loss import token_loss, token_losses

NUM_ROWS, VOCABULARY, HIDDEN = 37, 203, 16

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"with_bias": True},
    "softcap": {"softcap": 3.0},
    "scale": {"scale": 0.25},
    "bias, scale and softcap": {"with_bias": True, "scale": 1.7, "softcap": 2.0},
    "smoothing": {"smoothing": 0.1},
    "smoothing with all": {"with_bias": True, "scale": 1.7, "softcap": 2.0, "smoothing": 0.3},
}


def make_inputs(dtype: torch.dtype = torch.float64, ignored: float = 0.4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(NUM_ROWS, HIDDEN, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64)
    bias = torch.randn(VOCABULARY, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, VOCABULARY, (NUM_ROWS,), generator=generator)
    targets[torch.rand(NUM_ROWS, generator=generator) < ignored] = -100
    return hidden.to(dtype), weight.to(dtype), bias.to(dtype), targets


def reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    smoothing: float = 0.0,
) -> Tensor:
    logits = F.linear(hidden, weight, bias) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum", label_smoothing=smoothing)


def loss_and_gradients(function: Callable[..., Tensor], *leaves: Tensor | None, **options: object) -> list[Tensor]:
    hidden, weight, bias, targets = leaves
    inputs = [t for t in (hidden, weight, bias) if t is not None and t.requires_grad]
    loss = function(hidden, weight, targets, bias=bias, **options)
    return [loss.detach(), *torch.autograd.grad(loss * 0.37, inputs)]


@pytest.fixture(params=["one tile", "many tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "many tiles":
        monkeypatch.setattr(loss_module, "TILE_ROWS", 8)
        monkeypatch.setattr(loss_module, "TILE_LOGITS", 8 * 50)
        monkeypatch.setattr(loss_module, "TILE_COLUMNS", 1)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("trained", ["hidden", "head", "both"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradients_equal_cross_entropy_on_full_logits(variant: str, trained: str) -> None:
    options = dict(VARIANTS[variant])
    hidden, weight, bias, targets = make_inputs()
    leaves = [hidden, weight, bias if options.pop("with_bias", False) else None]
    for index, leaf in enumerate(leaves):
        if leaf is not None:
            leaf.requires_grad_(trained == "both" or (trained == "hidden") == (index == 0))
    ours = loss_and_gradients(token_loss, *leaves, targets, **options)
    expected = loss_and_gradients(reference, *leaves, targets, **options)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("trained", ["hidden", "head"])
@pytest.mark.parametrize("variant", ["plain", "bias, scale and softcap"])
def test_any_function_of_the_token_losses_gets_its_gradient_by_factors(variant: str, trained: str) -> None:
    """Here log(1 + sum of squares): each token's loss counts by the function's derivative."""
    options = dict(VARIANTS[variant])
    hidden, weight, bias, targets = make_inputs()
    options["bias"] = bias if options.pop("with_bias", False) else None
    leaf = (hidden if trained == "hidden" else weight).requires_grad_()
    logits = F.linear(hidden, weight, options["bias"]) * options.get("scale", 1.0)
    if softcap := options.get("softcap"):
        logits = softcap * torch.tanh(logits / softcap)
    expected = F.cross_entropy(logits, targets, reduction="none")
    losses = token_losses(hidden, weight, targets, **options)
    assert not losses.requires_grad
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-12, atol=1e-12)
    losses.requires_grad_()
    (factors,) = torch.autograd.grad(torch.log1p(losses.square().sum()), losses)
    loss = token_loss(hidden, weight, targets, **options, factors=factors)
    torch.testing.assert_close(loss.detach(), (losses.detach() * factors).sum())
    (wanted,) = torch.autograd.grad(torch.log1p(expected.square().sum()), leaf)
    torch.testing.assert_close(torch.autograd.grad(loss, leaf)[0], wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("tiles")
def test_loss_without_gradients_equals_cross_entropy() -> None:
    hidden, weight, _, targets = make_inputs()
    expected = reference(hidden, weight, targets)
    torch.testing.assert_close(token_loss(hidden, weight, targets), expected)
    hidden.requires_grad_()
    with torch.no_grad():
        loss = token_loss(hidden, weight, targets)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected)


def test_loss_ignores_what_ignored_rows_hold() -> None:
    hidden, weight, _, targets = make_inputs()
    hidden[targets == -100] = math.nan
    hidden.requires_grad_()
    (gradient,) = torch.autograd.grad(token_loss(hidden, weight, targets), hidden)
    assert gradient.isfinite().all()
    assert (gradient[targets == -100] == 0).all()
    assert (gradient[targets != -100] != 0).any(1).all()


def test_loss_of_no_supervised_token_is_zero_and_keeps_the_graph() -> None:
    hidden, weight, bias, targets = make_inputs(ignored=1.1)
    leaves = [t.requires_grad_() for t in (hidden, weight, bias)]
    loss = token_loss(hidden, weight, targets, bias=bias)
    assert loss.item() == 0
    for leaf, gradient in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
        assert gradient.shape == leaf.shape
        assert (gradient == 0).all()


def test_loss_gives_a_frozen_head_no_gradient() -> None:
    hidden, weight, bias, targets = make_inputs()
    token_loss(hidden.requires_grad_(), weight, targets, bias=bias).backward()
    assert hidden.grad is not None
    assert weight.grad is None
    assert bias.grad is None


def test_loss_backward_does_not_read_the_weight() -> None:
    """FSDP2 frees the gathered weight after the forward pass."""
    hidden, weight, _, targets = make_inputs()
    expected = loss_and_gradients(reference, hidden.requires_grad_(), weight, None, targets)[1]
    gathered = weight.clone()
    loss = token_loss(hidden, gathered, targets)
    gathered.untyped_storage().resize_(0)
    torch.testing.assert_close(torch.autograd.grad(loss * 0.37, hidden)[0], expected)


def test_loss_refuses_targets_outside_the_vocabulary() -> None:
    hidden, weight, _, targets = make_inputs()
    targets[0] = VOCABULARY
    with pytest.raises(IndexError, match=str(VOCABULARY)):
        token_loss(hidden, weight, targets)


def test_loss_survives_logits_beyond_the_range_of_exp() -> None:
    hidden, weight, _, targets = make_inputs(torch.float32)
    torch.testing.assert_close(token_loss(hidden * 300, weight, targets), reference(hidden * 300, weight, targets))


@pytest.mark.machine
@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("units", [True, False], ids=["bfloat16 units", "no bfloat16 units"])
@pytest.mark.parametrize("trained_head", [False, True], ids=["frozen head", "trained head"])
def test_loss_in_bfloat16_stays_within_the_rounding_of_its_matmuls(
    monkeypatch: pytest.MonkeyPatch, units: bool, trained_head: bool
) -> None:
    monkeypatch.setenv("DISTFT_CPU_BFLOAT16", "1" if units else "0")
    hidden, weight, _, targets = make_inputs(torch.bfloat16)
    leaves = [hidden.requires_grad_(), weight.requires_grad_(trained_head)]
    ours = loss_and_gradients(token_loss, *leaves, None, targets)
    exact = [leaf.detach().double().requires_grad_(leaf.requires_grad) for leaf in leaves]
    expected = loss_and_gradients(reference, *exact, None, targets)
    assert ours[0].dtype == torch.float32
    assert all(gradient.dtype == torch.bfloat16 for gradient in ours[1:])
    for got, want in zip(ours, expected, strict=True):
        assert (got.double() - want).norm() <= 2**-7 * want.norm()


def test_loss_takes_a_head_stored_in_another_dtype() -> None:
    hidden, weight, _, targets = make_inputs(torch.float32)
    stored = weight.to(torch.bfloat16)
    ours = loss_and_gradients(token_loss, hidden.requires_grad_(), stored, None, targets)
    expected = loss_and_gradients(reference, hidden, stored.float(), None, targets)
    torch.testing.assert_close(ours, expected)


@pytest.mark.machine
def test_loss_gradient_keeps_its_precision_on_well_learnt_tokens_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token with p = 1 - 1e-4 must not get the gradient of p = 1: that is what bfloat16 rounds it to."""
    monkeypatch.setenv("DISTFT_CPU_BFLOAT16", "1")
    weight = torch.eye(4, dtype=torch.bfloat16)
    hidden = torch.tensor([[9.5, 0, 0, 0]], dtype=torch.bfloat16, requires_grad=True)
    (gradient,) = torch.autograd.grad(token_loss(hidden, weight, torch.tensor([0])), hidden)
    expected = torch.softmax(hidden.detach().double(), 1) - torch.tensor([[1, 0, 0, 0]])
    torch.testing.assert_close(gradient.double(), expected, rtol=0.01, atol=0)


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made under this mode held at once, counted after each operation."""

    def __init__(self, *inputs: Tensor) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                storage = tensor.untyped_storage()
                self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.storages = {key: value for key, value in self.storages.items() if not value[0].expired()}
        self.peak = max(self.peak, sum(num_bytes for _, num_bytes in self.storages.values()))
        return out


@pytest.mark.parametrize(("num_rows", "hidden_size"), [(256, 32), (16, 128)], ids=["many rows", "few rows"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16 head"])
def test_loss_memory_is_bounded_by_a_tile_whatever_the_vocabulary(
    monkeypatch: pytest.MonkeyPatch, stored: torch.dtype, num_rows: int, hidden_size: int
) -> None:
    monkeypatch.setattr(loss_module, "TILE_LOGITS", 2**16)
    peaks = []
    for vocabulary in (4096, 16384):
        hidden = torch.randn(num_rows, hidden_size, requires_grad=True)
        weight = torch.randn(vocabulary, hidden_size, dtype=stored)
        targets = torch.randint(0, vocabulary, (num_rows,))
        with LiveBytes(hidden, weight, targets) as live:
            token_loss(hidden, weight, targets).backward()
        peaks.append(live.peak)
    assert peaks[0] == peaks[1]
    tile, rows = 2**16 * 4, num_rows * hidden_size * 4
    assert peaks[0] <= 2 * tile + 8 * rows
