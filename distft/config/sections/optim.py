"""The sections of the groups `optim` and `regularisation`: how weights move."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat

from distft.config.sections.section import Fraction, Section


class _Optim(Section):
    needs_whole_weights: ClassVar[bool] = False

    lr: PositiveFloat
    warmup: NonNegativeFloat = 0.03
    """Steps if >= 1, else the share of all steps."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """After the warm-up: fall to `min_lr_ratio * lr`, or stay."""
    min_lr_ratio: Fraction = 0.0
    weight_decay: NonNegativeFloat = 0.0
    weight_decay_on: Literal["all", "matrices"] = "all"
    """What decays; `matrices`: no biases and norms."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Clip the gradient's norm over all parameters and ranks; null: never."""
    skip_nonfinite: NonNegativeInt = 0
    """Steps with a NaN or infinite gradient that a run may skip before it stops."""


class AdamW(_Optim):
    name: Literal["adamw"]
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8


class AdamW8bit(_Optim):
    needs_whole_weights = True  # the blocks of 8-bit moments do not end where shards do

    name: Literal["adamw_8bit"]
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8


class Sgd(_Optim):
    name: Literal["sgd"]
    momentum: Fraction = 0.9


class Adafactor(_Optim):
    # ZeRO flattens matrices; PyTorch's Adafactor cannot take its row and column means over a DTensor (seen on 2.13).
    needs_whole_weights = True

    name: Literal["adafactor"]


AnyOptim = AdamW | AdamW8bit | Sgd | Adafactor


class Regularisation(Section):
    neftune_alpha: NonNegativeFloat = 0.0
    """Noise on the embedded tokens, alpha / sqrt(tokens * width) * U(-1, 1) (NEFTune, arXiv:2310.05914); 5 is usual."""
    label_smoothing: Fraction = 0.0
    """Share of each target that all of the vocabulary, or all classes, have alike (arXiv:1512.00567)."""
    fgm_epsilon: NonNegativeFloat = 0.0
    """Length of an adversarial step on each document's embeddings in a second pass (FGM, arXiv:1605.07725)."""
    r_drop: NonNegativeFloat = 0.0
    """Weight of the divergence between two dropout masks' predictions (R-Drop, arXiv:2106.14448)."""

    def problems(self) -> Iterator[str]:
        if self.r_drop and self.fgm_epsilon:
            yield (
                f"regularisation.fgm_epsilon: must be 0 beside regularisation.r_drop, got {self.fgm_epsilon:g}; "
                "set one of them to 0"
            )
