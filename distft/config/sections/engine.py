"""The sections of the `engine` group: where the parameters live."""

from typing import ClassVar, Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from distft.config.sections.section import Section
from distft.config.sections.traits import EngineTraits


class Auto(Section):
    traits: ClassVar[EngineTraits] = EngineTraits()

    name: Literal["auto"]


class Single(Section):
    traits: ClassVar[EngineTraits] = EngineTraits(one_rank=True)

    name: Literal["single"]


class Fsdp(Section):
    traits: ClassVar[EngineTraits] = EngineTraits(shards_blocks=True, splits_weights=True, skips_hooks=True)

    name: Literal["fsdp"]
    shard_size: PositiveInt | None = None
    """Ranks that share one copy of the weights (HSDP: world_size / shard_size replicas); null: all ranks."""
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the gradient reduction."""
    reshard_after_forward: bool = True
    """Free the gathered weights after the forward pass and gather them again in the backward pass."""
    offload: bool = False
    """Keep the shards in host memory between uses (GPU only)."""


class Zero2(Section):
    traits: ClassVar[EngineTraits] = EngineTraits(splits_weights=True, flattens=True, package="deepspeed")

    name: Literal["zero2"]
    offload_optimizer: bool = False
    """Keep optimizer states in host memory (GPU only)."""
    bucket_mb: PositiveFloat = 100
    """Size of a gradient bucket in MB."""


class Zero3(Section):
    traits: ClassVar[EngineTraits] = EngineTraits(
        shards_blocks=True, splits_weights=True, flattens=True, package="deepspeed"
    )

    name: Literal["zero3"]
    offload_optimizer: bool = False
    """Keep optimizer states in host memory (GPU only)."""
    offload_params: bool = False
    """Keep the shards in host memory between uses (GPU only)."""
    bucket_mb: PositiveFloat = 100
    """Size of a gradient bucket in MB."""
    prefetch_mb: NonNegativeFloat = 100
    """Weights gathered ahead of their use, in MB."""


AnyEngine = Auto | Single | Fsdp | Zero2 | Zero3


def engine_for(engine: AnyEngine, world_size: int) -> Single | Fsdp | Zero2 | Zero3:
    """The engine that runs: `auto` is `single` on one rank and `fsdp` on more."""
    if isinstance(engine, Auto):
        return Single(name="single") if world_size == 1 else Fsdp(name="fsdp")
    return engine
