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
    attributes_of_all = _fsdp_param.FSDPParam.init_dtype_attrs

    def init_dtype_attrs(self: Any, policy: MixedPrecisionPolicy) -> None:
        attributes_of_all(self, policy)
        if not self.orig_dtype.is_floating_point:
            self.param_dtype = None

    def parameter(data: Tensor, requires_grad: bool | None = None) -> nn.Parameter:
        return nn.Parameter(data, data.is_floating_point() if requires_grad is None else requires_grad)

    _fsdp_param.FSDPParam.init_dtype_attrs = init_dtype_attrs  # type: ignore[method-assign]
    _fsdp_param.nn = SimpleNamespace(Module=nn.Module, Parameter=parameter)  # type: ignore[attr-defined]


def _leaves_bytes_alone() -> bool:
    stored = SimpleNamespace(sharded_param=torch.empty(0, dtype=torch.uint8))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    _fsdp_param.FSDPParam.init_dtype_attrs(stored, policy)  # type: ignore[arg-type]
    return stored.param_dtype is None
