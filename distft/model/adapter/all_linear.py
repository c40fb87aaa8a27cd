"""What `all-linear` cannot reach, or must not: weights in no linear layer, layers that give more than a tensor."""

import logging
import re
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn
from transformers import PreTrainedModel

from distft.errors import ConfigError

logger = logging.getLogger(__name__)

ALL = "all-linear"
NOTABLE = 0.01
"""Share of the model's parameters from which on their being left out is told."""


def leave_out_routers(model: PreTrainedModel, wanted: PeftConfig) -> None:
    """Takes linear layers whose forward gives no single tensor, such as routers, out of `all-linear`.

    An adapter would add a tensor to what they give. Raises ConfigError where the targets name one of them.
    """
    routers = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and not _gives_a_tensor(m)]
    if not routers or not hasattr(wanted, "target_modules"):
        return
    if wanted.target_modules == ALL:
        excluded = getattr(wanted, "exclude_modules", None) or []
        if isinstance(excluded, str):
            excluded = [name for name, _ in model.named_modules() if re.fullmatch(excluded, name)]
        wanted.exclude_modules = sorted({*excluded, *routers})
        logger.warning(
            "adapter.targets=%s leaves out %d routers, such as %s: what they give is not one tensor, to which an "
            "adapter could add",
            ALL,
            len(routers),
            routers[0],
        )
    elif wanted.target_modules is not None and (
        named := [name for name in routers if check_target_module_exists(wanted, name)]
    ):
        raise ConfigError(
            f"adapter.targets: must be layers that give one tensor, got {named[0]} among {len(named)} of "
            f"{type(model.get_submodule(named[0])).__name__}; leave it out, or train it in full by "
            f"adapter.modules_to_save=[{named[0].rpartition('.')[2]}]"
        )


def tell_what_is_left_out(model: nn.Module, wanted: Any) -> None:
    """Warns where much of `model`, adapted by `all-linear`, lies in no linear layer: experts fused into one tensor."""
    adapted = {id(m.get_param()) for m in model.modules() if isinstance(m, ParamWrapper)}
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    sizes: dict[str, int] = {}
    for path, module in model.named_modules():
        for name, p in module.named_parameters(recurse=False):
            if p.dim() > 2 and id(p) not in adapted and not p.requires_grad and not isinstance(module, convolutions):
                parts = [*path.replace(".base_layer", "").split(".")[-1:], name]
                sizes[".".join(parts)] = sizes.get(".".join(parts), 0) + p.numel()
    share = sum(sizes.values()) / sum(p.numel() for p in model.parameters())
    if share >= NOTABLE:
        names = ",".join(sorted(sizes))
        how = f"adapter.options.target_parameters=[{names}] adapter.dropout=0 adapts them too"
        logger.warning(
            "adapter.targets=%s leaves out %s, %.0f%% of the model's parameters, which are no linear layers: they stay "
            "as they are%s",
            ALL,
            names,
            100 * share,
            f"; {how}" if hasattr(wanted, "target_parameters") else "",
        )


@torch.no_grad()
def _gives_a_tensor(layer: nn.Linear) -> bool:
    if type(layer).forward is nn.Linear.forward:
        return True
    training = layer.training
    layer.eval()
    try:
        given = layer(torch.empty(1, layer.in_features, dtype=layer.weight.dtype, device=layer.weight.device))
    except (TypeError, ValueError, RuntimeError, IndexError):  # it takes more than states
        return False
    finally:
        layer.train(training)
    return isinstance(given, Tensor) and given.shape == (1, layer.out_features)
