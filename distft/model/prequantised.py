"""Bases that are published quantised: FP8, NF4 and MXFP4 are read as what they stand for, others refused by name.

A quantised tensor lies in several of the file; here they become one reader, so that what follows sees plain weights.
"""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from bitsandbytes.functional import create_dynamic_map, get_4bit_type
from torch import Tensor

from distft.errors import ConfigError
from distft.model.quantize import SUPERBLOCK, Nf4

Readers = dict[str, Callable[[], Tensor]]
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
STATE = ".quant_state.bitsandbytes__nf4"
STATISTICS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
ACTIVATIONS = (".activation_scale", ".input_scale", ".qscale_act", ".k_scale", ".v_scale")
"""Scales of what flows, which is not quantised here."""


def quantization_of(hf_config: Any) -> dict[str, Any]:
    """What a base's config says of how its weights are quantised; nothing: they are plain."""
    for config in (hf_config, hf_config.get_text_config()):
        for name in ("quantization_config", "compression_config"):
            found = getattr(config, name, None)
            if found:
                return dict(found if isinstance(found, dict) else found.to_dict())
    return {}


def forget(hf_config: Any) -> None:
    """Takes it out of a config, whose model is plain once it is read."""
    for config in (hf_config, hf_config.get_text_config()):
        for name in ("quantization_config", "compression_config"):
            if hasattr(config, name):
                delattr(config, name)


def refusal(quantization: dict[str, Any], key: str = "model") -> str | None:
    """Why weights that are quantised so cannot be read, in a sentence."""
    method = _method(quantization)
    if method in ("", "fp8", "fbgemm_fp8", "mxfp4", "bitsandbytes nf4"):
        return None
    return (
        f"{key}.source: weights must be plain, or quantised as fp8, mxfp4 or bitsandbytes nf4, got {method}; "
        f"take the base that this one was made of, {key}.quantization=nf4 makes it as small"
    )


def _method(quantization: dict[str, Any]) -> str:
    if not quantization:
        return ""
    method = str(getattr(quantization.get("quant_method"), "value", quantization.get("quant_method") or "unnamed"))
    bits = {name: quantization.get(name) or quantization.get(f"_{name}") for name in ("load_in_4bit", "load_in_8bit")}
    if bits["load_in_4bit"]:
        return f"bitsandbytes {quantization.get('bnb_4bit_quant_type', 'fp4')}"
    return "bitsandbytes int8" if bits["load_in_8bit"] else method


def plain(readers: Readers, quantization: dict[str, Any]) -> Readers:
    """`readers` of a file whose weights are quantised so, by the names of the weights alone. Raises ConfigError."""
    if any(name.endswith((".qweight", ".qzeros")) for name in readers) and not quantization:
        quantization = {"quant_method": "gptq or awq (*.qweight)"}  # told in a file of its own, quantize_config.json
    if problem := refusal(quantization):
        raise ConfigError(problem)
    match _method(quantization):
        case "fp8" | "fbgemm_fp8":
            return _fp8(readers, quantization.get("weight_block_size"))
        case "mxfp4":
            return _mxfp4(readers)
        case "bitsandbytes nf4":
            return _nf4(readers)
    return readers


class Nf4Reader:
    """Reads a weight that bitsandbytes stored in NF4: its values, or its bytes as they lie in the file."""

    def __init__(self, name: str, read: Callable[[], Tensor], parts: Readers):
        self.name, self._read, self._parts = name, read, parts

    def stored(self, dtype: torch.dtype) -> tuple[Nf4, Tensor]:
        """How it lies, and in which bytes. Raises ConfigError for another code book than NF4's."""
        state = json.loads(bytes(self._parts[STATE[1:]]().tolist()))
        tensors = {part: self._parts[part]() for part in STATISTICS if part in self._parts}
        nested = "nested_absmax" in tensors
        books = [("quant_map", get_4bit_type("nf4", device="cpu"))]
        books += [("nested_quant_map", create_dynamic_map())] if nested else []
        if any(not torch.allclose(tensors[part].float(), book, atol=1e-6) for part, book in books) or (
            nested and state["nested_blocksize"] != SUPERBLOCK
        ):
            raise ConfigError(
                f"model.source: {self.name} must be NF4 as bitsandbytes makes it, got another code book; "
                "take the base that this one was made of"
            )
        layout = Nf4(torch.Size(state["shape"]), dtype, block=state["blocksize"], nested=nested)
        if nested:
            parts = [tensors["nested_absmax"].float(), torch.tensor([state["nested_offset"]])]
            parts += [self._read(), tensors["absmax"]]
        else:
            parts = [tensors["absmax"].float(), self._read()]
        return layout, torch.cat([part.reshape(-1).contiguous().view(torch.uint8) for part in parts])

    def __call__(self) -> Tensor:
        layout, stored = self.stored(torch.float32)
        return layout.decode(stored)


def _nf4(readers: Readers) -> Readers:
    weights = [name.removesuffix(STATE) for name in readers if name.endswith(STATE)]
    ends = (STATE[1:], *STATISTICS)
    parts = {name: {end: readers[f"{name}.{end}"] for end in ends if f"{name}.{end}" in readers} for name in weights}
    of_parts = {f"{name}.{end}" for name in weights for end in ends}
    rest = {name: reader for name, reader in readers.items() if name not in of_parts}
    return rest | {name: Nf4Reader(name, readers[name], parts[name]) for name in weights}


def _mxfp4(readers: Readers) -> Readers:
    blocks = {name.removesuffix("_blocks") for name in readers if name.endswith("_blocks")}
    of_parts = {f"{name}_{part}" for name in blocks for part in ("blocks", "scales")}
    rest = {name: reader for name, reader in readers.items() if name not in of_parts}
    return rest | {name: partial(_from_mxfp4, readers[f"{name}_blocks"], readers[f"{name}_scales"]) for name in blocks}


def _from_mxfp4(blocks: Callable[[], Tensor], scales: Callable[[], Tensor]) -> Tensor:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    return convert_moe_packed_tensors(blocks(), scales(), dtype=torch.bfloat16)  # exact: 1 bit and an exponent


def _fp8(readers: Readers, block: list[int] | None) -> Readers:
    scales = {name: scale for name in readers for scale in _scale_names(name) if scale in readers}
    unused = {*scales.values(), *(name for name in readers if name.endswith(ACTIVATIONS))}
    return {
        name: partial(_from_fp8, name, read, readers.get(scales.get(name, "")), block)
        for name, read in readers.items()
        if name not in unused
    }


def _scale_names(name: str) -> list[str]:
    """What the scale of a weight may be called; `_inv` or not, it is multiplied by."""
    stem = name.removesuffix(".weight")
    names = [f"{name}_scale_inv", f"{name}_scale"]
    return [*names, f"{stem}.scale", f"{stem}.qscale_weight"] if stem != name else names


def _from_fp8(name: str, read: Callable[[], Tensor], scale: Callable[[], Tensor] | None, block: Any) -> Tensor:
    values = read()
    if scale is None:
        if values.dtype in FP8:
            raise ConfigError(
                f"model.source: every FP8 weight must have its scale, {name} has none in the file; download it again"
            )
        return values
    factors = scale()
    if factors.dtype == torch.uint8:  # MXFP8: exponents alone
        factors = (factors.float() - 127).exp2()
    if values.dtype not in FP8:
        raise ConfigError(
            f"model.source: weights with a scale must be FP8, got {name} in {values.dtype}; "
            "take the base that this one was made of"
        )
    return values.float() * _spread(factors.float(), values.shape, block, name)


def _spread(scale: Tensor, shape: torch.Size, block: Any, name: str) -> Tensor:
    """`scale` of a tensor, a row, an expert or a block, in a shape that multiplies `shape`."""
    if scale.numel() == 1:
        return scale.reshape(())
    if block and scale.dim() == len(shape):
        grid = [-(-size // step) for size, step in zip(shape[-2:], block, strict=True)]
        if list(scale.shape[-2:]) == grid:
            rows, columns = shape[-2:]
            spread = scale.repeat_interleave(block[0], -2)[..., :rows, :]
            return spread.repeat_interleave(block[1], -1)[..., :columns]
    if scale.dim() == len(shape) - 1 and scale.shape == shape[:-1]:  # one a row
        return scale.unsqueeze(-1)
    if scale.dim() == 1 and len(shape) > 1 and len(scale) == shape[0]:  # one an expert, or a row
        return scale.reshape(-1, *[1] * (len(shape) - 1))
    if scale.dim() == len(shape):
        if all(size in (1, whole) for size, whole in zip(scale.shape, shape, strict=True)):
            return scale
        steps = [whole // size for size, whole in zip(scale.shape, shape, strict=True)]
        if [size * step for size, step in zip(scale.shape, steps, strict=True)] == list(shape):
            for axis, step in enumerate(steps):
                scale = scale.repeat_interleave(step, axis)
            return scale
    raise ConfigError(
        f"model.source: the scale of {name} must fit its shape {list(shape)} in blocks of {block}, got "
        f"{list(scale.shape)}; take the base that this one was made of"
    )
