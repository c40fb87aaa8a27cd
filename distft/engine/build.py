"""The engine that a config names: one line an engine."""

import torch

from distft.config import schema
from distft.engine.seam import Engine
from distft.runtime.group import Group


def build(config: schema.Config, group: Group, compute: torch.dtype) -> Engine:
    """The engine that the config names."""
    from distft.engine.fsdp import Fsdp
    from distft.engine.single import Single

    settings = schema.engine_for(config.engine, group.ranks.world_size)
    b_lr_ratio = config.adapter.traits.b_lr_ratio
    if isinstance(settings, schema.Single):
        return Single(config.optim, group, b_lr_ratio)
    if isinstance(settings, schema.Fsdp):
        return Fsdp(settings, config.optim, group, compute, b_lr_ratio)
    from distft.engine.zero import Zero

    return Zero(settings, config.optim, group, b_lr_ratio)
