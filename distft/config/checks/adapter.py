"""Checks of what trains: a method's options, and what it goes with. Imports no torch."""

from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter, ValidationError

from distft.config.keys import describe, nearest, show
from distft.config.schema import (
    AnyAdapter,
    AnyEngine,
    AnyOptim,
    Auto,
    Bottleneck,
    Data,
    Fsdp,
    Full,
    Layers,
    Lora,
    Model,
    Peft,
    Regularisation,
)
from distft.config.sections.peft_table import OPTIONS

PROMPTS = ("prefix_tuning", "prompt_tuning", "p_tuning")
"""Methods that put virtual tokens before each row."""

HEADLESS = ("adaption_prompt", "trainable_tokens")
"""Methods in whose files PEFT keeps nothing but what is theirs."""

UNFIT = {
    "adamss": "PEFT reads the base's weights as it attaches it, and here they are loaded after that",
    "cartridge": "it starts from the attention states of a text of its own, which no data format holds",
    "cpt": "it needs the kind of each token of a context, which no data format holds",
    "frod": "PEFT reads the base's weights as it attaches it, and here they are loaded after that",
    "lily": "PEFT joins its matrices over the layers as it attaches it, and here each layer starts on its own",
    "multitask_prompt_tuning": "it needs a task id with each row, which no data format holds",
    "poly": "it needs a task id with each row, which no data format holds",
    "psoft": "PEFT reads the base's weights as it attaches it, and here they are loaded after that",
    "randlora": "PEFT makes its bases as it attaches it, and here that is before there is memory behind the model",
    "shadow": "it puts a second network beside the blocks, which would not be sharded",
    "shira": "PEFT reads the base's weights as it attaches it, and here they are loaded after that",
    "tinylora": "PEFT makes its vectors as it attaches it, and here that is before there is memory behind the model",
    "unilora": "PEFT makes its vectors as it attaches it, and here that is before there is memory behind the model",
    "xlora": "it mixes adapters that were trained before",
}
"""Methods of PEFT that are refused, and why."""

UNSHARDED = {
    "osf": (("fsdp",), "it projects its gradients in hooks that FSDP2 does not call"),
    "vblora": (("fsdp", "zero3"), "all blocks share its vectors, and blocks are sharded one by one"),
}
"""Methods of PEFT that some engines cannot split: which, and why."""

UNMERGEABLE = {
    **dict.fromkeys(PROMPTS, "virtual tokens are no part of any weight"),
    "adaption_prompt": "its prompts are no part of any weight",
    "bottleneck": "its activation stands between its two matrices",
}
"""Methods that no plain model can hold, and why."""

OWN_KEYS = {
    "r": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "use_rslora": "rslora",
    "use_dora": "dora",
    "init_lora_weights": "init",
}
"""Fields of LoraConfig that are keys of `adapter=lora`."""


def method(adapter: AnyAdapter) -> Iterator[str]:
    if isinstance(adapter, Peft) and adapter.method in UNFIT:
        usable = [name for name in OPTIONS if name not in UNFIT]
        yield (
            f"adapter.method: must be a method that fits, got {adapter.method}: {UNFIT[adapter.method]}; "
            f"use one of {', '.join(usable)}"
        )


def options(adapter: AnyAdapter) -> Iterator[str]:
    if not isinstance(adapter, Lora | Peft):
        return
    known = OPTIONS[adapter.method]
    for name, value in adapter.options.items():
        key = f"adapter.options.{name}"
        if isinstance(adapter, Lora) and name in OWN_KEYS:
            yield f"{key}: is a key of adapter=lora, got {show(value)}; write adapter.{OWN_KEYS[name]}={show(value)}"
        elif name in ("target_modules", "modules_to_save"):
            ours = name.removesuffix("_modules") + "s" if name == "target_modules" else name
            yield f"{key}: is a key of every method, got {show(value)}; write adapter.{ours}={show(value)}"
        elif name == "total_step":
            yield f"{key}: is the run's own number of steps, got {show(value)}; remove it"
        elif name not in known:
            near = nearest(name, known)
            hint = f"did you mean {near}? " if near else ""
            yield f"{key}: no such option; {hint}options of {adapter.method}: {', '.join(known)}"
        elif not _fits(value, known[name]):
            yield f"{key}: must be {describe(known[name])}, got {show(value)}; write {key}=VALUE, or leave it out"


def _fits(value: Any, kind: Any) -> bool:
    try:
        TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def targets(adapter: AnyAdapter) -> Iterator[str]:
    if isinstance(adapter, Peft) and adapter.method in (*PROMPTS, "trainable_tokens", "adaption_prompt"):
        if adapter.targets is not None and adapter.method != "trainable_tokens":
            yield f"adapter.targets: must be null with {adapter.method}, got {show(adapter.targets)}; remove it"
    elif isinstance(adapter, Lora | Peft | Bottleneck) and adapter.targets is not None and not adapter.targets:
        fix = "[mlp]" if isinstance(adapter, Bottleneck) else "all-linear"
        yield f"adapter.targets: must name at least one module, got none; use adapter.targets={fix}"


def needed(adapter: AnyAdapter) -> Iterator[str]:
    if not isinstance(adapter, Peft):
        return
    wanted = {
        "trainable_tokens": {"token_indices": "[0,1]"},
        "adaption_prompt": {"adapter_len": "10", "adapter_layers": "2"},
        **{name: {"num_virtual_tokens": "20"} for name in PROMPTS},
    }
    for name, example in wanted.get(adapter.method, {}).items():
        if not adapter.options.get(name):
            key = f"adapter.options.{name}"
            got = show(adapter.options.get(name))
            yield f"{key}: must be set for {adapter.method}, got {got}; give {key}={example}, for example"


def rank_budget(adapter: AnyAdapter) -> Iterator[str]:
    if not isinstance(adapter, Peft) or adapter.method != "adalora":
        return
    start, end = (adapter.options.get(key, default) for key, default in (("init_r", 12), ("target_r", 8)))
    if isinstance(start, int) and isinstance(end, int) and not 0 < end < start:
        yield (
            f"adapter.options.target_r: must be > 0 and below init_r, from which the ranks fall to it, got {end} with "
            f"init_r {start}; use adapter.options.init_r={2 * max(1, end)}"
        )


def rank_budget_in_steps(adapter: AnyAdapter, steps: int | None) -> Iterator[str]:
    if not isinstance(adapter, Peft) or adapter.method != "adalora" or steps is None:
        return
    still = [adapter.options.get(key, 0) for key in ("tinit", "tfinal")]
    if all(isinstance(count, int) for count in still) and sum(still) >= steps:
        yield (
            f"adapter.options.tinit: must leave steps in which ranks fall, got tinit {still[0]} + tfinal {still[1]} "
            f"with steps={steps}; use less of them, or more steps"
        )


def virtual_tokens(adapter: AnyAdapter, data: Data, model: Model) -> Iterator[str]:
    if not isinstance(adapter, Peft) or adapter.method not in PROMPTS:
        return
    if data.packing:
        yield (
            f"data.packing: must be false with adapter.method={adapter.method}, whose virtual tokens stand before a "
            "row and not before each document in it, got true; use data.packing=false"
        )
    if adapter.method == "prefix_tuning":
        if model.gradient_checkpointing != "none":
            yield (
                "model.gradient_checkpointing: must be none with adapter.method=prefix_tuning, whose prefix is a cache "
                f"that recomputation would fill twice, got {model.gradient_checkpointing}; "
                "use model.gradient_checkpointing=none"
            )
        if model.attention not in ("auto", "sdpa", "eager"):
            yield (
                "model.attention: must be sdpa or eager with adapter.method=prefix_tuning, whose keys are more than "
                f"its queries, got {model.attention}; use model.attention=auto"
            )


def quantization(model: Model, adapter: AnyAdapter) -> Iterator[str]:
    if model.quantization != "none" and isinstance(adapter, Full):
        yield (
            f"model.quantization: must be none where every weight trains, got {model.quantization} with adapter=full; "
            "use adapter=lora, or model.quantization=none"
        )
    if isinstance(adapter, Lora) and adapter.init == "loftq" and model.quantization == "none":
        yield (
            "adapter.init: loftq fits the error of quantisation and must have one, got model.quantization=none; "
            "use model.quantization=nf4, or adapter.init=default"
        )


def sharding(adapter: AnyAdapter, engine: AnyEngine) -> Iterator[str]:
    if isinstance(adapter, Peft) and adapter.method in UNSHARDED:
        engines, why = UNSHARDED[adapter.method]
        if engine.name in engines:
            yield (
                f"engine: must be able to split what {adapter.method} trains, got {engine.name}: {why}; "
                "use engine=zero2, or engine=single on one rank"
            )


def sharding_on_ranks(adapter: AnyAdapter, engine: AnyEngine, world_size: int) -> Iterator[str]:
    if isinstance(engine, Auto) and world_size > 1:
        yield from sharding(adapter, Fsdp(name="fsdp"))


def unfreezing(adapter: AnyAdapter, optim: AnyOptim) -> Iterator[str]:
    if isinstance(adapter, Full | Layers) and adapter.unfreeze_every is not None and optim.weight_decay:
        yield (
            "optim.weight_decay: must be 0 with adapter.unfreeze_every, since it would move blocks that do not train "
            f"yet, got {optim.weight_decay:g}; use optim.weight_decay=0, or adapter.unfreeze_every=null"
        )


def regularisation(regularisation: Regularisation, adapter: AnyAdapter) -> Iterator[str]:
    if regularisation.r_drop and isinstance(adapter, Lora | Bottleneck) and not adapter.dropout:
        yield (
            f"regularisation.r_drop: must have dropout, whose masks it compares, got {regularisation.r_drop:g} with "
            "adapter.dropout=0; use adapter.dropout=0.05, or regularisation.r_drop=0"
        )
    if regularisation.r_drop and regularisation.fgm_epsilon:
        yield (
            f"regularisation.fgm_epsilon: must be 0 beside regularisation.r_drop, got {regularisation.fgm_epsilon:g}; "
            "set one of them to 0"
        )


CHECKS = (
    regularisation,
    method,
    options,
    targets,
    needed,
    rank_budget,
    rank_budget_in_steps,
    virtual_tokens,
    quantization,
    sharding,
    sharding_on_ranks,
    unfreezing,
)
