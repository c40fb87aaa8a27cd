"""FSDP2 of torch 2.11 and parameters of bytes: it asks for the gradient of each parameter it makes, which uint8 cannot
have, and would gather it in the matmul's dtype. From 2.12 on it does neither, and nothing here is done.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.fsdp._fully_shard import _fsdp_param


def take_bytes() -> None:
    """Has `fully_shard` leave uint8 parameters as they are, in this process from here on."""
    if _leaves_bytes_alone():
        return
    module: Any = _fsdp_param
    attributes_of_all = module.FSDPParam.init_dtype_attrs

    def init_dtype_attrs(self: Any, policy: MixedPrecisionPolicy) -> None:
        attributes_of_all(self, policy)
        if not self.orig_dtype.is_floating_point:
            self.param_dtype = None

    def parameter(data: Tensor, requires_grad: bool | None = None) -> nn.Parameter:
        return nn.Parameter(data, data.is_floating_point() if requires_grad is None else requires_grad)

    module.FSDPParam.init_dtype_attrs = init_dtype_attrs
    module.nn = SimpleNamespace(Module=nn.Module, Parameter=parameter)


def _leaves_bytes_alone() -> bool:
    stored: Any = SimpleNamespace(sharded_param=torch.empty(0, dtype=torch.uint8))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    _fsdp_param.FSDPParam.init_dtype_attrs(stored, policy)
    return stored.param_dtype is None
