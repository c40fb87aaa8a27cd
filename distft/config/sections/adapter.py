"""The sections of the `adapter` group: what trains."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import PositiveFloat, PositiveInt, TypeAdapter, ValidationError

from distft.config.keys import describe, nearest, show
from distft.config.sections.peft_table import OPTIONS, PeftMethod
from distft.config.sections.peft_traits import UNFIT, traits_of
from distft.config.sections.section import Fraction, Section
from distft.config.sections.traits import AdapterTraits

OWN_KEYS = {
    "r": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "use_rslora": "rslora",
    "use_dora": "dora",
    "init_lora_weights": "init",
}
"""Fields of LoraConfig that are keys of `adapter=lora`."""

OWN_WEIGHTS = AdapterTraits(is_peft=False, own_weights=True, starts_as_base=True)


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

    @property
    def traits(self) -> AdapterTraits:
        return AdapterTraits(
            starts_as_base=True,  # B = 0, or what was taken from the base is in the adapter
            changes_base=self.init if self.init in ("pissa", "loftq", "olora") else "",
            fits_quantisation=self.init == "loftq",
            combines=not self.dora,
            magnitudes=self.dora,
            b_lr_ratio=self.b_lr_ratio,
            dropout=self.dropout,
        )

    def problems(self) -> Iterator[str]:
        yield from option_problems(self.method, self.options, OWN_KEYS)
        yield from _target_problems(self.method, self.targets, self.traits)


class Peft(Section):
    method: PeftMethod
    targets: str | list[str] | None = None
    """`all-linear`, or suffixes of module names; null: what PEFT chooses for the model and method."""
    modules_to_save: list[str] = []
    """Modules that train in full beside the adapter, and are saved with it."""
    options: dict[str, Any] = {}
    """Fields of the config class that PEFT has for the method."""

    @property
    def traits(self) -> AdapterTraits:
        traits = traits_of(self.method)
        still = self.options.get("tinit", 0), self.options.get("tfinal", 0)
        falls = traits.rank_budget and all(isinstance(count, int) for count in still)
        return replace(traits, rank_budget=still) if falls else traits

    def problems(self) -> Iterator[str]:
        if self.method in UNFIT:
            usable = [name for name in OPTIONS if name not in UNFIT]
            yield (
                f"adapter.method: must be a method that fits, got {self.method}: {UNFIT[self.method]}; "
                f"use one of {', '.join(usable)}"
            )
        yield from option_problems(self.method, self.options)
        yield from _target_problems(self.method, self.targets, self.traits)
        for name, example in self.traits.needs.items():
            if not self.options.get(name):
                key = f"adapter.options.{name}"
                got = show(self.options.get(name))
                yield f"{key}: must be set for {self.method}, got {got}; give {key}={example}, for example"
        if self.traits.rank_budget:
            start, end = self.options.get("init_r", 12), self.options.get("target_r", 8)
            if isinstance(start, int) and isinstance(end, int) and not 0 < end < start:
                yield (
                    f"adapter.options.target_r: must be > 0 and below init_r, from which the ranks fall to it, got "
                    f"{end} with init_r {start}; use adapter.options.init_r={2 * max(1, end)}"
                )


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

    @property
    def traits(self) -> AdapterTraits:
        return AdapterTraits(
            is_peft=False,
            starts_as_base=True,
            targets="[mlp]",
            wraps_sublayers=True,
            unmergeable="its activation stands between its two matrices",
            dropout=self.dropout,
        )

    def problems(self) -> Iterator[str]:
        yield from _target_problems(self.method, self.targets, self.traits)


class Full(Section):
    method: Literal["full"]
    unfreeze_every: PositiveInt | None = None
    """Steps after which one more block trains, from the top; at first it is the last one and the head. null: all do."""

    @property
    def traits(self) -> AdapterTraits:
        return replace(OWN_WEIGHTS, every_weight=True, unfreeze_every=self.unfreeze_every)


class Layers(Section):
    method: Literal["layers"]
    count: PositiveInt = 2
    """How many blocks train: the last ones."""
    unfreeze_every: PositiveInt | None = None
    """Steps after which one more of them trains, from the top; at first it is the last one. null: all do."""

    @property
    def traits(self) -> AdapterTraits:
        return replace(OWN_WEIGHTS, last_blocks=self.count, unfreeze_every=self.unfreeze_every)


class Bitfit(Section):
    traits: ClassVar[AdapterTraits] = OWN_WEIGHTS

    method: Literal["bitfit"]


class Head(Section):
    traits: ClassVar[AdapterTraits] = OWN_WEIGHTS

    method: Literal["head"]


AnyAdapter = Lora | Peft | Bottleneck | Full | Layers | Bitfit | Head


def option_problems(method: str, options: Mapping[str, Any], own_keys: Mapping[str, str] = {}) -> Iterator[str]:
    """What PEFT's config of a method does not know or take. `own_keys`: its fields that are keys of the section."""
    known = OPTIONS[method]
    keys = {"target_modules": "targets", "modules_to_save": "modules_to_save", **own_keys}
    for name, value in options.items():
        key = f"adapter.options.{name}"
        if name in keys:
            owner = f"adapter={method}" if name in own_keys else "every method"
            yield f"{key}: is a key of {owner}, got {show(value)}; write adapter.{keys[name]}={show(value)}"
        elif name == "total_step":
            yield f"{key}: is the run's own number of steps, got {show(value)}; remove it"
        elif name not in known:
            near = nearest(name, known)
            hint = f"did you mean {near}? " if near else ""
            yield f"{key}: no such option; {hint}options of {method}: {', '.join(known)}"
        elif not _fits(value, known[name]):
            yield f"{key}: must be {describe(known[name])}, got {show(value)}; write {key}=VALUE, or leave it out"


def _fits(value: Any, kind: Any) -> bool:
    try:
        TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def _target_problems(method: str, targets: str | list[str] | None, traits: AdapterTraits) -> Iterator[str]:
    if targets is not None and not traits.targets:
        yield f"adapter.targets: must be null with {method}, got {show(targets)}; remove it"
    elif targets is not None and not targets:
        yield f"adapter.targets: must name at least one module, got none; use adapter.targets={traits.targets}"
