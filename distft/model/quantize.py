"""How the frozen base's linear layers lie in memory: NF4, or a narrower float than the matmul's.

One stored layer is one parameter of one dtype. That makes sharding it trivial and exact: FSDP2 and ZeRO-3 split the
4-bit codes and their scales alike, 0.516 bytes a weight over the ranks, and no float-aware operation ever meets
packed bits.
"""

from typing import Any

import torch
import torch.nn.functional as F
from bitsandbytes.functional import QuantState, create_dynamic_map, dequantize_4bit, get_4bit_type, quantize_4bit
from torch import Tensor, nn

BLOCK = 64  # weights that share a scale
SUPERBLOCK = 256  # scales that share a scale: "double quantisation", QLoRA (arXiv:2305.14314) section 3


class Nf4:
    """4-bit NormalFloat with double quantisation, by bitsandbytes' kernels, in one uint8 tensor.

    Layout: fp32 scales of the scales | fp32 mean of the scales | two weights a byte | uint8 scales.
    A base may come without the second quantisation (not `nested`): fp32 scales | two weights a byte.
    """

    def __init__(self, shape: torch.Size, dtype: torch.dtype, block: int = BLOCK, nested: bool = True):
        self.shape, self.dtype, self.block, self.nested = shape, dtype, block, nested
        weights = shape.numel()
        blocks, codes = -(-weights // block), -(-weights // 2)
        self.sizes = [4 * -(-blocks // SUPERBLOCK), 4, codes, blocks] if nested else [4 * blocks, codes]

    def encode(self, weight: Tensor) -> Tensor:
        codes, state = quantize_4bit(weight, blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
        parts = [state.state2.absmax.float(), state.offset.float().reshape(1), codes, state.absmax]
        return torch.cat([part.reshape(-1).contiguous().view(torch.uint8) for part in parts])

    def decode(self, stored: Tensor) -> Tensor:
        # A gathered buffer may start at any byte; fp32 views need four-byte alignment, a copy has it.
        nested, mean = None, None
        if self.nested:
            scale_scales, offset, codes, scales = stored.split(self.sizes)
            mean = offset.clone().view(torch.float32).squeeze()
            nested = QuantState(
                scale_scales.clone().view(torch.float32),
                code=_cached(create_dynamic_map, stored.device),
                blocksize=SUPERBLOCK,
                dtype=torch.float32,
            )
        else:
            scales, codes = stored.split(self.sizes)
            scales = scales.clone().view(torch.float32)
        state = QuantState(
            scales,
            shape=self.shape,
            dtype=self.dtype,
            blocksize=self.block,
            code=_cached(_nf4_codebook, stored.device),
            quant_type="nf4",
            offset=mean,
            state2=nested,
        )
        return dequantize_4bit(codes.unsqueeze(1), state)


class Narrow:
    """A float dtype narrower than the matmul's: bfloat16 weights on a CPU that multiplies float32 faster."""

    def __init__(self, stored_dtype: torch.dtype, dtype: torch.dtype):
        self.stored_dtype, self.dtype = stored_dtype, dtype

    def encode(self, weight: Tensor) -> Tensor:
        return weight.to(self.stored_dtype)

    def decode(self, stored: Tensor) -> Tensor:
        return stored.to(self.dtype)


class StoredLinear(nn.Linear):
    """A frozen linear layer whose weight is decoded for each use and never kept.

    An `nn.Linear` to PEFT and everyone else: `weight` is the decoded weight `[out_features, in_features]`, made anew
    at each access. The parameter that exists is `stored`.
    """

    def __init__(self, linear: nn.Linear, encoding: Nf4 | Narrow, stored: Tensor | None = None):
        """`stored`: the weight as it is encoded already."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.encoding = encoding
        encoded = encoding.encode(linear.weight.detach()) if stored is None else stored
        self.stored = nn.Parameter(encoded, requires_grad=False)
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.encoding.decode(self.stored)

    def forward(self, input: Tensor) -> Tensor:
        # On rows: what the function gives must be no view, or methods that add to it in place are refused by autograd.
        rows = _StoredMatmul.apply(input.reshape(-1, self.in_features), self.stored, self.bias, self.encoding)
        return rows.view(*input.shape[:-1], self.out_features)

    def to_linear(self, dtype: torch.dtype) -> nn.Linear:
        """A plain layer with the decoded weight, for merging and export."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(self.weight.to(dtype), requires_grad=False)
        linear.bias = self.bias
        return linear


class _StoredMatmul(torch.autograd.Function):
    """`x @ decode(stored).T + bias` for rows `x`, keeping `stored` for the backward pass instead of the decoded weight.

    What is saved is the parameter itself, not a view: FSDP2 and ZeRO-3 free its storage after the forward pass and
    fill it again before the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, stored: Tensor, bias: Tensor | None, encoding: Nf4 | Narrow) -> Tensor:
        ctx.encoding = encoding
        ctx.save_for_backward(stored)
        return F.linear(x, encoding.decode(stored), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (stored,) = ctx.saved_tensors
        grad_x = grad @ ctx.encoding.decode(stored) if ctx.needs_input_grad[0] else None
        grad_bias = grad.sum(0) if ctx.needs_input_grad[2] else None
        return grad_x, None, grad_bias, None


def encoding_for(
    linear: nn.Linear, quantization: str, stored: torch.dtype, compute: torch.dtype
) -> Nf4 | Narrow | None:
    """How `linear` is to be stored; None: as it is."""
    if quantization == "nf4":
        return Nf4(linear.weight.shape, compute)
    return Narrow(stored, compute) if stored != compute else None


def _nf4_codebook(device: torch.device) -> Tensor:
    return get_4bit_type("nf4", device=device)


_codebooks: dict[tuple[Any, torch.device], Tensor] = {}


def _cached(make: Any, device: torch.device) -> Tensor:
    """The code book `make` gives, on `device`, made once: decoding happens some hundred times a step."""
    key = (make, device)
    if key not in _codebooks:
        made = make(device) if make is _nf4_codebook else make()
        _codebooks[key] = made.to(device)
    return _codebooks[key]
