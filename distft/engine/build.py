"""The engine that a config names: one line an engine."""

from functools import partial

import torch

from distft.config import schema
from distft.engine import optim
from distft.engine.seam import Engine
from distft.runtime.group import Group


def build(config: schema.Config, group: Group, compute: torch.dtype) -> Engine:
    """The engine that the config names; `auto` is `single` on one rank and `fsdp` on more."""
    from distft.engine.fsdp import Fsdp
    from distft.engine.single import Single

    settings = config.engine
    if isinstance(settings, schema.Auto):
        fsdp = schema.Fsdp(name="fsdp")
        settings = schema.Single(name="single") if group.ranks.world_size == 1 else fsdp
    b_lr_ratio = config.adapter.b_lr_ratio if isinstance(config.adapter, schema.Lora) else 1.0
    make_optimizer = partial(optim.build, config.optim, b_lr_ratio=b_lr_ratio)
    max_grad_norm = config.optim.max_grad_norm
    if isinstance(settings, schema.Single):
        return Single(group, make_optimizer, max_grad_norm)
    if isinstance(settings, schema.Fsdp):
        return Fsdp(settings, group, make_optimizer, max_grad_norm, compute)
    from distft.engine.zero import Zero

    return Zero(settings, group, make_optimizer, max_grad_norm)
