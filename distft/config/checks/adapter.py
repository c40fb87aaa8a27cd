"""Checks between what trains and the other sections. Imports no torch."""

from collections.abc import Iterator

from distft.config.schema import AnyAdapter, AnyEngine, AnyOptim, Data, Model, Regularisation, engine_for


def _regularisation(regularisation: Regularisation, adapter: AnyAdapter) -> Iterator[str]:
    if regularisation.r_drop and adapter.traits.dropout == 0:
        yield (
            f"regularisation.r_drop: must have dropout, whose masks it compares, got {regularisation.r_drop:g} with "
            "adapter.dropout=0; use adapter.dropout=0.05, or regularisation.r_drop=0"
        )


def _virtual_tokens(adapter: AnyAdapter, data: Data, model: Model) -> Iterator[str]:
    if adapter.traits.virtual_tokens and data.packing:
        yield (
            f"data.packing: must be false with adapter.method={adapter.method}, whose virtual tokens stand before a "
            "row and not before each document in it, got true; use data.packing=false"
        )
    if adapter.traits.is_cache and model.gradient_checkpointing != "none":
        yield (
            f"model.gradient_checkpointing: must be none with adapter.method={adapter.method}, whose prefix is a cache "
            f"that recomputation would fill twice, got {model.gradient_checkpointing}; "
            "use model.gradient_checkpointing=none"
        )
    if adapter.traits.is_cache and model.attention not in ("auto", "sdpa", "eager"):
        yield (
            f"model.attention: must be sdpa or eager with adapter.method={adapter.method}, whose keys are more than "
            f"its queries, got {model.attention}; use model.attention=auto"
        )


def _quantization(model: Model, adapter: AnyAdapter) -> Iterator[str]:
    if model.quantization != "none" and adapter.traits.every_weight:
        yield (
            f"model.quantization: must be none where every weight trains, got {model.quantization} with "
            f"adapter={adapter.method}; use adapter=lora, or model.quantization=none"
        )
    if adapter.traits.fits_quantisation and model.quantization == "none":
        yield (
            f"adapter.init: {adapter.traits.changes_base} fits the error of quantisation and must have one, got "
            "model.quantization=none; use model.quantization=nf4, or adapter.init=default"
        )


def _sharding(adapter: AnyAdapter, engine: AnyEngine) -> Iterator[str]:
    unshardable = adapter.traits.unshardable if engine.traits.shards_blocks else ""
    unhooked = adapter.traits.needs_hooks if engine.traits.skips_hooks else ""
    if why := unshardable or unhooked:
        yield (
            f"engine: must be able to split what {adapter.method} trains, got {engine.name}: {why}; "
            "use engine=zero2, or engine=single on one rank"
        )


def _sharding_on_ranks(adapter: AnyAdapter, engine: AnyEngine, world_size: int) -> Iterator[str]:
    chosen = engine_for(engine, world_size)
    if chosen != engine:
        yield from _sharding(adapter, chosen)


def _rank_budget(adapter: AnyAdapter, steps: int | None) -> Iterator[str]:
    still = adapter.traits.rank_budget
    if still and steps is not None and sum(still) >= steps:
        yield (
            f"adapter.options.tinit: must leave steps in which ranks fall, got tinit {still[0]} + tfinal {still[1]} "
            f"with steps={steps}; use less of them, or more steps"
        )


def _unfreezing(adapter: AnyAdapter, optim: AnyOptim) -> Iterator[str]:
    if adapter.traits.unfreeze_every is not None and optim.weight_decay:
        yield (
            "optim.weight_decay: must be 0 with adapter.unfreeze_every, since it would move blocks that do not train "
            f"yet, got {optim.weight_decay:g}; use optim.weight_decay=0, or adapter.unfreeze_every=null"
        )


ANYWHERE = (
    _regularisation,
    _rank_budget,
    _virtual_tokens,
    _quantization,
    _sharding,
    _sharding_on_ranks,
    _unfreezing,
)
