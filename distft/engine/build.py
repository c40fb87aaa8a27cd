"""The engine that a config names: an import and a case an engine, both of which mypy checks."""

from functools import partial

import torch

from distft.config import schema
from distft.engine import optim
from distft.engine.seam import Engine
from distft.runtime.group import Group


def build(config: schema.Config, group: Group, compute: torch.dtype) -> Engine:
    """The engine that the config names."""
    from distft.engine.fsdp import Fsdp
    from distft.engine.single import Single

    settings = schema.engine_for(config.engine, group.ranks.world_size)
    make_optimizer = partial(optim.build, config.optim, b_lr_ratio=config.adapter.traits.b_lr_ratio)
    max_grad_norm = config.optim.max_grad_norm
    if isinstance(settings, schema.Single):
        return Single(group, make_optimizer, max_grad_norm)
    if isinstance(settings, schema.Fsdp):
        return Fsdp(settings, group, make_optimizer, max_grad_norm, compute)
    from distft.engine.zero import Zero

    return Zero(settings, group, make_optimizer, max_grad_norm)
