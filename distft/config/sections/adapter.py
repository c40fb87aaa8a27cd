"""The sections of the `adapter` group: what trains."""

from typing import Any, Literal

from pydantic import PositiveFloat, PositiveInt

from distft.config.sections.peft_table import PeftMethod
from distft.config.sections.section import Fraction, Section


class Lora(Section):
    method: Literal["lora"]
    r: PositiveInt = 16
    alpha: PositiveFloat = 32
    dropout: Fraction = 0.0
    targets: str | list[str] = "all-linear"
    """`all-linear`, or suffixes of module names."""
    init: Literal["default", "gaussian", "pissa", "loftq", "olora"] = "default"
    """How A and B start: B = 0 (`default`, `gaussian`), or from the base weight (the others change the base too)."""
    rslora: bool = False
    """Scale by alpha/sqrt(r) in place of alpha/r (arXiv:2312.03732)."""
    dora: bool = False
    """Train the weight's magnitude apart from its direction (arXiv:2402.09353)."""
    modules_to_save: list[str] = []
    """Modules that train in full beside the adapter, and are saved with it."""
    b_lr_ratio: PositiveFloat = 1.0
    """How many times A's learning rate B has (LoRA+, arXiv:2402.12354)."""
    options: dict[str, Any] = {}
    """Further fields of PEFT's LoraConfig."""


class Peft(Section):
    method: PeftMethod
    targets: str | list[str] | None = None
    """`all-linear`, or suffixes of module names; null: what PEFT chooses for the model and method."""
    modules_to_save: list[str] = []
    """Modules that train in full beside the adapter, and are saved with it."""
    options: dict[str, Any] = {}
    """Fields of the config class that PEFT has for the method."""


class Bottleneck(Section):
    method: Literal["bottleneck"]
    placement: Literal["serial", "parallel"] = "serial"
    """Over a sublayer's output (arXiv:1902.00751), or from its input beside it (arXiv:2110.04366)."""
    size: PositiveInt = 64
    """Width of the bottleneck."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    scale: PositiveFloat = 1.0
    """What the adapter's output is multiplied by."""
    dropout: Fraction = 0.0
    targets: list[str] = ["self_attn", "mlp"]
    """Suffixes of the sublayers' names in each block."""


class Full(Section):
    method: Literal["full"]
    unfreeze_every: PositiveInt | None = None
    """Steps after which one more block trains, from the top; at first it is the last one and the head. null: all do."""


class Layers(Section):
    method: Literal["layers"]
    count: PositiveInt = 2
    """How many blocks train: the last ones."""
    unfreeze_every: PositiveInt | None = None
    """Steps after which one more of them trains, from the top; at first it is the last one. null: all do."""


class Bitfit(Section):
    method: Literal["bitfit"]


class Head(Section):
    method: Literal["head"]


AnyAdapter = Lora | Peft | Bottleneck | Full | Layers | Bitfit | Head
