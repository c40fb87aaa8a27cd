"""Optimizers by name, and the learning rate as a function of the step: nothing of a schedule needs saving."""

import math
from collections.abc import Callable
from typing import Any, assert_never

import torch
from torch import nn

from distft.config import schema

MakeOptimizer = Callable[[dict[str, nn.Parameter]], torch.optim.Optimizer]


def build(
    settings: schema.AnyOptim, parameters: dict[str, nn.Parameter], b_lr_ratio: float = 1.0
) -> torch.optim.Optimizer:
    """The optimizer over `parameters`, given by name. The learning rate is set anew at each step by `set_rate`.

    `b_lr_ratio`: how many times the rate of all others LoRA's B has.
    """
    groups = _groups(settings, parameters, b_lr_ratio)
    if isinstance(settings, schema.AdamW):
        return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)
    if isinstance(settings, schema.AdamW8bit):
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)
    if isinstance(settings, schema.Sgd):
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)
    if isinstance(settings, schema.Adafactor):
        return torch.optim.Adafactor(groups, lr=settings.lr)
    assert_never(settings)  # mypy names an optimizer that is left out here


def _groups(settings: schema.AnyOptim, parameters: dict[str, nn.Parameter], ratio: float) -> list[dict[str, Any]]:
    """Parameters of like weight decay and rate together, in the order in which their kinds come."""
    kinds: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        shape = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO-3 leaves its own empty
        decays = settings.weight_decay_on == "all" or len(shape) > 1
        kind = (settings.weight_decay if decays else 0.0, ratio if "lora_B" in name else 1.0)
        kinds.setdefault(kind, []).append(parameter)
    return [{"params": members, "weight_decay": decay, "lr_ratio": times} for (decay, times), members in kinds.items()]


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Gives each group its share of `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_ratio"]


def learning_rate(settings: schema.AnyOptim, step: int, num_steps: int) -> float:
    """The rate of 0-based `step`: up in a line over the warm-up (never 0), then down to `min_lr_ratio` at the end.

    Cosine: Loshchilov and Hutter, arXiv:1608.03983.
    """
    warmup = settings.warmup if settings.warmup >= 1 else settings.warmup * num_steps
    warmup = int(warmup)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, num_steps - 1 - warmup)
    if settings.schedule == "constant":
        factor = 1.0
    elif settings.schedule == "linear":
        factor = 1 - done
    else:
        factor = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return settings.lr * (settings.min_lr_ratio + (1 - settings.min_lr_ratio) * max(0.0, factor))
