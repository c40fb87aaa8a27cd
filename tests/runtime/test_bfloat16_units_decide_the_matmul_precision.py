"""On a processor, what is stored in bfloat16 is multiplied in it where there are units for it, else in float32."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distft.config import schema
from distft.errors import ConfigError
from distft.model.load import compute_dtype
from distft.task.loss import token_loss

CPU = torch.device("cpu")


class MatmulDtypes(TorchDispatchMode):
    """The dtypes that matrices are multiplied in under this mode."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            self.found.add(args[-1].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("shown", "dtype"), [("1", torch.bfloat16), ("0", torch.float32)])
def test_the_environment_shows_and_hides_the_units(monkeypatch, shown, dtype):
    monkeypatch.setenv("DISTFT_CPU_BFLOAT16", shown)
    assert compute_dtype(schema.Model(source="base", dtype="bfloat16"), CPU) == dtype
    hidden, weight = torch.randn(4, 8).bfloat16().requires_grad_(), torch.randn(16, 8).bfloat16().requires_grad_()
    with MatmulDtypes() as matmuls:
        token_loss(hidden, weight, torch.arange(4)).backward()
    assert matmuls.found == {dtype}


@pytest.mark.parametrize("units", [True, False])
def test_the_processor_is_asked_where_the_environment_says_nothing(monkeypatch, units):
    monkeypatch.delenv("DISTFT_CPU_BFLOAT16", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: units)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    stored = schema.Model(source="base", dtype="bfloat16")
    assert compute_dtype(stored, CPU) == (torch.bfloat16 if units else torch.float32)
    asked = schema.Model(source="base", dtype="bfloat16", compute_dtype="bfloat16")
    assert compute_dtype(asked, CPU) == torch.bfloat16


def test_a_switch_that_is_neither_on_nor_off_is_refused(monkeypatch):
    monkeypatch.setenv("DISTFT_CPU_BFLOAT16", "yes")
    with pytest.raises(ConfigError, match="DISTFT_CPU_BFLOAT16: must be 1, 0 or unset, got 'yes'"):
        compute_dtype(schema.Model(source="base", dtype="bfloat16"), CPU)
