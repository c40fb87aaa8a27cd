"""How far a student's predictions are from a teacher's, a few tokens at a time: the full logits never exist at once.

The gradient is taken in the forward pass, so that the backward pass never reads the head's weight: an engine may free
or reshard it before. As `distft.task.loss`, but by rows: a divergence needs all of a token's logits.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CHUNK_LOGITS = 2**23  # 32 MB in float32; some six such tensors exist at a time

Bins = tuple[Tensor | None, Tensor]
"""Token ids [n, k] and log-probabilities [n, k + 1], the last one of all other tokens; or no ids and [n, V]."""


def bins(logits: Tensor, top_k: int | None) -> Bins:
    """The likeliest tokens of each row, and the rest as one."""
    if top_k is None or top_k >= logits.shape[1]:
        return None, logits.log_softmax(1)
    ids = logits.topk(top_k, 1).indices
    return ids, in_bins(logits, ids)


def in_bins(logits: Tensor, ids: Tensor | None) -> Tensor:
    """Log-probabilities of the bins that `ids` make."""
    if ids is None:
        return logits.log_softmax(1)
    whole = logits.logsumexp(1, keepdim=True)
    rest = logits.scatter(1, ids, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([logits.gather(1, ids), rest], 1) - whole


def divergence(teacher: Tensor, student: Tensor, direction: str) -> Tensor:
    """KL(teacher, student) `forward` or KL(student, teacher) `reverse` of log-probabilities [n, bins]: [n]."""
    of, to = (teacher, student) if direction == "forward" else (student, teacher)
    return (of.exp() * (of - to)).sum(1)


def chunks(count: int, vocabulary: int) -> list[slice]:
    """Rows whose logits exist at once."""
    size = max(1, CHUNK_LOGITS // vocabulary)
    return [slice(start, start + size) for start in range(0, count, size)]


Measure = Callable[[Tensor, Tensor, Tensor | None, slice], tuple[Tensor, Tensor]]
"""Of states [n, H], the head's weight and bias, and which rows they are: a loss (0-dim), and numbers [n, ...]."""


def summed(measure: Measure, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The sum of the losses of all rows of `hidden` [N, H], and their numbers [N, ...], which have no gradient.

    `measure` must read nothing else that trains.
    """
    return _Summed.apply(measure, hidden, weight, bias, torch.is_grad_enabled())


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, measure: Measure, hidden: Tensor, weight: Tensor, bias: Tensor | None, with_grad: bool
    ) -> tuple[Tensor, Tensor]:
        wants = [with_grad and wanted for wanted in ctx.needs_input_grad[1:4]]
        given = hidden, weight, bias
        grads = [
            torch.zeros_like(t) if t is not None and wanted else None for t, wanted in zip(given, wants, strict=True)
        ]
        weight = weight.detach().requires_grad_(wants[1])
        bias = None if bias is None else bias.detach().requires_grad_(wants[2])
        total, numbers = torch.zeros((), device=hidden.device), []
        with torch.autocast(hidden.device.type, enabled=False), torch.set_grad_enabled(any(wants)):
            for rows in chunks(len(hidden), len(weight)):
                part = hidden[rows].detach().requires_grad_(wants[0])
                loss, found = measure(part, weight, bias, rows)
                total += loss.detach()
                numbers.append(found.detach())
                slots = [
                    (grad, leaf) for grad, leaf in zip(grads, (part, weight, bias), strict=True) if grad is not None
                ]
                if slots:
                    found_grads = torch.autograd.grad(loss, [leaf for _, leaf in slots if leaf is not None])
                    for (grad, leaf), by_leaf in zip(slots, found_grads, strict=True):
                        (grad[rows] if leaf is part else grad).add_(by_leaf)
        ctx.save_for_backward(*grads)
        every = torch.cat(numbers) if numbers else hidden.new_zeros(0, dtype=torch.float32)
        ctx.mark_non_differentiable(every)
        return total, every

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grads = [None if grad is None else grad * grad_total for grad in ctx.saved_tensors]
        return None, *grads, None
