"""The sum of token losses, straight from hidden states and the head's weight: the full logits never exist.

Ignored positions are dropped first. The rest goes by tiles of the vocabulary with a running log-sum-exp, as in
FlashAttention (arXiv:2205.14135) and Cut Cross-Entropy (arXiv:2411.09009). The gradient is taken in the forward pass,
so the backward pass never reads the weight: an engine may free or reshard it before.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distft.data.document import IGNORED
from distft.runtime.processor import has_bfloat16_units

TILE_ROWS = 4096
TILE_LOGITS = 2**24  # 64 MB in float32
TILE_COLUMNS = 256  # at least, however many rows


def token_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    smoothing: float = 0.0,
    factors: Tensor | None = None,
) -> Tensor:
    """Sum of the cross-entropies of `targets` under `softcap * tanh(scale * (hidden @ weight.T + bias) / softcap)`.

    `smoothing` e takes 1 - e of each from the target and e from all of the vocabulary alike (arXiv:1512.00567);
    `factors` [N]: what each cross-entropy counts in the sum, constants.

    `hidden` [N, H]; `weight` [V, H] and `bias` [V], in any dtype; `targets` [N], -100 where ignored. Returns a 0-dim
    float32 (float64 for float64 hidden states). Matmuls run in the dtype of `hidden`, log-sum-exps in float32. A frozen
    weight gets no gradient and costs two matmuls; one that trains costs four, as its logits are computed twice.
    """
    return _TokenLoss.apply(hidden, weight, bias, targets, softcap, scale, smoothing, factors, torch.is_grad_enabled())


@torch.no_grad()
def token_losses(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
) -> Tensor:
    """The cross-entropies that `token_loss` sums, one a row [N], 0 where ignored. Without gradients, for one matmul.

    The gradient of any function of them is that of `token_loss` whose `factors` are the function's derivatives.
    """
    kept, labels = _supervised(targets, len(weight))
    head = _Head(weight, bias, softcap, scale, 0.0, _matmul_dtype(hidden))
    losses = hidden.new_zeros(len(hidden), dtype=head.sum_dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        for start in range(0, len(kept), TILE_ROWS):
            part = slice(start, start + TILE_ROWS)
            rows = hidden.index_select(0, kept[part]).to(head.dtype)
            losses[kept[part]] = _losses(rows, labels[part], head, with_grad=False).losses.squeeze(1)
    return losses


@torch.no_grad()
def likeliest_tokens(hidden: Tensor, weight: Tensor, *, bias: Tensor | None = None) -> Tensor:
    """int64 [N]: the tokens of the largest logits under any softcap and positive scale; of equals the first one."""
    head = _Head(weight, bias, None, 1.0, 0.0, _matmul_dtype(hidden))
    found = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        for start in range(0, len(hidden), TILE_ROWS):
            part = slice(start, start + TILE_ROWS)
            rows, highest = hidden[part].to(head.dtype), None
            for tile in head.tiles(rows, found[part]):
                value, column = tile.logits.max(1)
                better = torch.ones_like(column, dtype=torch.bool) if highest is None else value > highest
                found[part] = torch.where(better, column + tile.columns.start, found[part])
                highest = value if highest is None else torch.maximum(highest, value)
    return found


def _supervised(targets: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Numbers and targets of the rows that are not ignored."""
    kept = (targets != IGNORED).nonzero().squeeze(1)
    labels = targets.index_select(0, kept)
    if len(labels) and (labels.min() < 0 or labels.max() >= vocabulary):
        raise IndexError(f"targets must be {IGNORED} or in [0, {vocabulary}), got {labels.min()} to {labels.max()}")
    return kept, labels


class _TokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        softcap: float | None,
        scale: float,
        smoothing: float,
        factors: Tensor | None,
        with_grad: bool,
    ) -> Tensor:
        kept, labels = _supervised(targets, len(weight))
        wants_hidden, wants_weight, wants_bias = (with_grad and wanted for wanted in ctx.needs_input_grad[:3])
        head = _Head(weight, bias, softcap, scale, smoothing, _matmul_dtype(hidden))
        grad_hidden = hidden.new_zeros(len(kept), hidden.shape[1]) if wants_hidden else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        grad_bias = torch.zeros_like(bias) if wants_bias and bias is not None else None
        by_row = None if factors is None else factors.index_select(0, kept).to(head.sum_dtype).unsqueeze(1)
        two_passes = wants_weight or wants_bias  # these gradients need the log-sum-exp over the whole vocabulary
        loss = hidden.new_zeros((), dtype=head.sum_dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(kept), TILE_ROWS):
                part = slice(start, start + TILE_ROWS)
                rows, row_labels = hidden.index_select(0, kept[part]).to(head.dtype), labels[part]
                found = _losses(rows, row_labels, head, with_grad=wants_hidden and not two_passes)
                share = None if by_row is None else by_row[part]
                loss += found.losses.sum() if share is None else (found.losses * share).sum()
                grad = found.grad
                if two_passes:
                    grad = _gradients(rows, row_labels, found, head, share, grad_weight, grad_bias)
                elif grad is not None and share is not None:
                    grad.mul_(share)
                if grad_hidden is not None and grad is not None:
                    grad_hidden[part] = grad
        ctx.save_for_backward(kept, grad_hidden, grad_weight, grad_bias)
        ctx.num_rows = len(hidden)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        # In place: a second backward pass over the same graph fails on autograd's version check.
        kept, grad_hidden, *others = ctx.saved_tensors
        for grad in (grad_hidden, *others):
            if grad is not None:
                grad.mul_(grad_output)
        if grad_hidden is not None and len(kept) != ctx.num_rows:
            full = grad_hidden.new_zeros(ctx.num_rows, grad_hidden.shape[1])
            grad_hidden = full.index_copy_(0, kept, grad_hidden)
        return grad_hidden, *others, None, None, None, None, None, None


def _matmul_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype of `hidden`, but float32 where bfloat16 matmuls are emulated: they take 5 times as long."""
    if hidden.dtype == torch.bfloat16 and hidden.device.type == "cpu" and not has_bfloat16_units():
        return torch.float32
    return hidden.dtype


@dataclass
class _Tile:
    """Logits of some rows and some columns of the vocabulary."""

    columns: slice
    weight: Tensor
    logits: Tensor
    """After softcap; in the matmul dtype. Its memory is used again by the next tile."""
    spare: Tensor
    """A tensor like `logits` in the summing dtype; the same memory if the dtypes are the same."""
    slope: Tensor | None
    """Derivative of the softcap."""
    at: Tensor
    """[rows, 1]: each row's target, as a column of this tile; any column where `inside` is false."""
    inside: Tensor
    """[rows, 1]: the row's target lies in this tile."""

    def for_matmul(self, values: Tensor) -> Tensor:
        """`values` in the matmul dtype, over the memory of `logits`."""
        return values if values.dtype == self.logits.dtype else self.logits.copy_(values)


@dataclass
class _Head:
    weight: Tensor
    bias: Tensor | None
    softcap: float | None
    scale: float
    smoothing: float
    dtype: torch.dtype

    @property
    def sum_dtype(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def tiles(self, rows: Tensor, labels: Tensor) -> Iterator[_Tile]:
        # A tile of the weight [columns, H] may have to be cast: it is no larger than a tile of logits either.
        width = min(len(self.weight), max(TILE_LOGITS // max(rows.shape), TILE_COLUMNS))
        memory = rows.new_empty(len(rows) * width)
        spare = memory if self.dtype == self.sum_dtype else torch.empty_like(memory, dtype=self.sum_dtype)
        for start in range(0, len(self.weight), width):
            columns = slice(start, min(start + width, len(self.weight)))
            shape = len(rows), columns.stop - start
            weight = self.weight[columns].to(self.dtype)
            logits = memory[: shape[0] * shape[1]].view(shape)
            if self.bias is None:
                torch.addmm(logits, rows, weight.t(), beta=0, alpha=self.scale, out=logits)
            else:
                bias = self.bias[columns].to(self.dtype)
                torch.addmm(bias, rows, weight.t(), beta=self.scale, alpha=self.scale, out=logits)
            slope = None
            if self.softcap is not None:
                logits.div_(self.softcap).tanh_()
                slope = logits.to(self.sum_dtype).square().neg_().add_(1)
                logits.mul_(self.softcap)
            local = (labels - start).unsqueeze(1)
            inside = (local >= 0) & (local < shape[1])
            at = local.clamp(0, shape[1] - 1)
            yield _Tile(columns, weight, logits, spare[: logits.numel()].view(shape), slope, at, inside)


@dataclass
class _Found:
    losses: Tensor
    """[n, 1]: each row's loss."""
    surprise: Tensor
    """[n, 1]: the target's negative log-probability; the loss where nothing is smoothed."""
    log_sum: Tensor
    """[n, 1]: log-sum-exp over the vocabulary."""
    grad: Tensor | None
    """[n, H]: the gradient of the losses' sum by the rows."""


def _losses(rows: Tensor, labels: Tensor, head: _Head, *, with_grad: bool) -> _Found:
    highest = rows.new_full((len(rows), 1), torch.finfo(head.sum_dtype).min, dtype=head.sum_dtype)
    total, target, every = (torch.zeros_like(highest) for _ in range(3))
    grad = torch.zeros_like(rows, dtype=head.sum_dtype) if with_grad else None
    uniform = torch.zeros_like(grad) if grad is not None and head.smoothing else None
    for tile in head.tiles(rows, labels):
        target = torch.where(tile.inside, tile.logits.gather(1, tile.at), target)
        previous, highest = highest, torch.maximum(highest, tile.logits.amax(1, keepdim=True))
        decay = (previous - highest).exp_()
        if head.smoothing:
            every.add_(tile.logits.sum(1, keepdim=True, dtype=head.sum_dtype))
        exps = torch.sub(tile.logits, highest, out=tile.spare).exp_()
        total.mul_(decay).add_(exps.sum(1, keepdim=True))
        if grad is not None:
            # The target's own part is added below, from p - 1: in bfloat16 the p of a well-learnt token rounds to 1.
            exps.scatter_(1, tile.at, exps.gather(1, tile.at).masked_fill_(tile.inside, 0))
            if tile.slope is not None:
                exps.mul_(tile.slope)
            _add_matmul(grad.mul_(decay), tile.for_matmul(exps), tile.weight)
        if uniform is not None:
            if tile.slope is None:
                uniform.add_(tile.weight.sum(0, dtype=head.sum_dtype))
            else:
                _add_matmul(uniform, tile.for_matmul(tile.slope), tile.weight)
    log_sum = total.log().add_(highest)
    surprise = log_sum - target
    losses = surprise
    if head.smoothing:
        mean_surprise = log_sum - every / len(head.weight)
        losses = surprise.lerp(mean_surprise, head.smoothing)
    if grad is not None:
        own = surprise.neg().expm1_().add_(head.smoothing)
        if head.softcap is not None:
            own.mul_(1 - target.div_(head.softcap).square_())
        own_part = head.weight.index_select(0, labels).to(head.sum_dtype).mul_(own)
        grad.div_(total).add_(own_part)
        if uniform is not None:
            grad.sub_(uniform, alpha=head.smoothing / len(head.weight))
        grad.mul_(head.scale)
    return _Found(losses, surprise, log_sum, grad)


def _gradients(
    rows: Tensor,
    labels: Tensor,
    found: _Found,
    head: _Head,
    factors: Tensor | None,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
) -> Tensor:
    """The gradient of the losses' sum by `rows` [n, H]; adds those by weight and bias to `grad_weight`, `grad_bias`.

    `factors` [n, 1]: what each row's loss counts in the sum.
    """
    grad = torch.zeros_like(rows, dtype=head.sum_dtype)
    own = found.surprise.neg().expm1_().add_(head.smoothing)
    for tile in head.tiles(rows, labels):
        by_logit = torch.sub(tile.logits, found.log_sum, out=tile.spare).exp_()
        by_logit.scatter_(1, tile.at, torch.where(tile.inside, own, by_logit.gather(1, tile.at)))
        if head.smoothing:
            by_logit.sub_(head.smoothing / len(head.weight))
        if tile.slope is not None:
            by_logit.mul_(tile.slope)
        if head.scale != 1:
            by_logit.mul_(head.scale)
        if factors is not None:
            by_logit.mul_(factors)
        factor = tile.for_matmul(by_logit)
        _add_matmul(grad, factor, tile.weight)
        if grad_weight is not None:
            _add_matmul(grad_weight[tile.columns], factor.t(), rows)
        if grad_bias is not None:
            grad_bias[tile.columns] += by_logit.sum(0)
    return grad


def _add_matmul(total: Tensor, a: Tensor, b: Tensor) -> None:
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total.add_(a @ b)
