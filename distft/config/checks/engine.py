"""Checks between the ranks, the engine and the optimizer. Imports no torch."""

import os
from collections.abc import Iterator
from pathlib import Path

from distft.config.schema import AnyEngine, AnyOptim, Data, engine_for


def _batch(data: Data, world_size: int) -> Iterator[str]:
    rows, micro = data.global_batch, data.micro_batch
    at_once = micro * world_size
    if rows % at_once == 0:
        return
    around = sorted({max(at_once, rows // at_once * at_once), (rows // at_once + 1) * at_once})
    fixes = [" or ".join(f"data.global_batch={value}" for value in around)]
    if rows % world_size == 0:
        fixes.append(f"data.micro_batch={_nearest_divisor(rows // world_size, micro)}")
    if rows % micro == 0:
        fixes.append(_ranks(_nearest_divisor(rows // micro, world_size)))
    yield (
        f"data.global_batch: must be micro_batch x accumulation x world_size, got {rows} with data.micro_batch={micro} "
        f"and {_ranks(world_size)}; use {', or '.join(fixes)}"
    )


def _nearest_divisor(number: int, wanted: int) -> int:
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: (abs(d - wanted), d))


def _ranks(count: int) -> str:
    return "1 rank" if count == 1 else f"{count} ranks"


def _ranks_of_engine(engine: AnyEngine, world_size: int) -> Iterator[str]:
    if engine.traits.one_rank and world_size > 1:
        yield f"engine: must be one for {world_size} ranks, got {engine.name}; use engine=auto, or start one process"
    shard_size = getattr(engine, "shard_size", None)
    if shard_size and world_size % shard_size:
        fits = _nearest_divisor(world_size, shard_size)
        yield (
            f"engine.shard_size: must divide the {_ranks(world_size)}, got {shard_size}; "
            f"use engine.shard_size={fits}, or null to shard over all"
        )


def _optimizer(optim: AnyOptim, engine: AnyEngine) -> Iterator[str]:
    if optim.needs_whole_weights and engine.traits.splits_weights:
        yield (
            f"optim: {optim.name} needs each weight whole, which engine={engine.name} splits; "
            "use engine=single, or optim=adamw"
        )


def _decay(optim: AnyOptim, engine: AnyEngine) -> Iterator[str]:
    if optim.weight_decay_on != "all" and engine.traits.flattens:
        yield (
            f"optim.weight_decay_on: must be all with engine={engine.name}, where two groups of weights do other than "
            f"on one process, got {optim.weight_decay_on}; use engine=fsdp, or optim.weight_decay_on=all"
        )


def _optimizer_on_ranks(optim: AnyOptim, engine: AnyEngine, world_size: int) -> Iterator[str]:
    chosen = engine_for(engine, world_size)
    if chosen != engine and optim.needs_whole_weights and chosen.traits.splits_weights:
        yield (
            f"optim: {optim.name} needs each weight whole, which engine={engine.name} splits over {world_size} ranks; "
            "start one process, or use optim=adamw"
        )


def _warmup(optim: AnyOptim, steps: int | None) -> Iterator[str]:
    if optim.warmup >= 1 and optim.warmup != int(optim.warmup):
        yield f"optim.warmup: must be whole steps, or a share below 1, got {optim.warmup}; use {int(optim.warmup)}"
    elif steps is not None and optim.warmup >= 1 and optim.warmup > steps:
        yield (
            f"optim.warmup: must not be longer than the run, got {optim.warmup:g} with steps={steps}; "
            "use fewer, or a share of the steps such as optim.warmup=0.03"
        )


def _gpu(engine: AnyEngine) -> Iterator[str]:
    if gpu_is_likely():
        return
    for key in [key for key in type(engine).model_fields if key.startswith("offload")]:
        if getattr(engine, key):
            yield f"engine.{key}: must have a GPU to offload from, got a machine without one; use engine.{key}=false"


def gpu_is_likely() -> bool:
    """Whether this process may see a GPU, told by device files and without torch; wrong in favour of a GPU."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1"):
        return False
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd"))


ANYWHERE = (_batch, _ranks_of_engine, _optimizer, _decay, _optimizer_on_ranks, _warmup)
HERE = (_gpu,)
