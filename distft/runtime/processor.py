"""What the processor is good at."""

import os

import torch

from distft.errors import ConfigError

SWITCH = "DISTFT_CPU_BFLOAT16"


def has_bfloat16_units() -> bool:
    """Whether the processor multiplies bfloat16 matrices in units of its own; without them it takes 5 times as long.

    The environment's DISTFT_CPU_BFLOAT16, 1 or 0, answers instead where it is set: one machine can then run what
    depends on it both ways. Matmuls in bfloat16 are right without the units too.
    """
    told = os.environ.get(SWITCH, "")
    if told not in ("", "0", "1"):
        raise ConfigError(f"{SWITCH}: must be 1, 0 or unset, got {told!r}; unset it to use what the processor has")
    return told == "1" or (not told and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()))
