"""Checks between sections: combinations that no single key can refuse. Imports no torch.

Each check is a function of the sections it names as its parameters, and yields sentences. It runs when all of them
are valid, so that a fault in one section hides no fault between two others.
"""

import importlib.util
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from distft.config.checks import adapter as check_adapter
from distft.config.checks import data as check_data
from distft.config.checks import task as check_task
from distft.config.checks.model import CONTROL, missing_model, model_problems, odd, problems_of
from distft.config.keys import nearest, show
from distft.config.schema import (
    Adafactor,
    AdamW8bit,
    AnyEngine,
    AnyOptim,
    Auto,
    Data,
    Evaluation,
    Fsdp,
    Model,
    NoTracking,
    Single,
    Source,
    Tensorboard,
    Wandb,
    Zero2,
    Zero3,
)
from distft.runtime.location import locate

Tracking = NoTracking | Wandb | Tensorboard
Check = Callable[..., Iterator[str]]


def check(valid: Mapping[str, Any], *, world_size: int | None = None, here: bool = True) -> list[str]:
    """Every problem between the valid sections of a config, given by name.

    `world_size`: None skips what depends on it. `here`: False skips what this machine must have.
    """
    values = {**valid} if world_size is None else {**valid, "world_size": world_size}
    return _run([*ANYWHERE, *HERE] if here else ANYWHERE, values)


def check_on_disk(valid: Mapping[str, Any]) -> list[str]:
    """What is missing on a machine that submits a run: it has the files and packages, and maybe no GPU."""
    return _run(ON_DISK, valid)


def _run(checks: Iterable[Check], values: Mapping[str, Any]) -> list[str]:
    problems: list[str] = []
    for one in checks:
        needed = list(inspect.signature(one).parameters)
        if all(name in values for name in needed):
            problems += one(**{name: values[name] for name in needed})
    return problems


def _length(steps: int | None, epochs: float | None) -> Iterator[str]:
    if steps is None and epochs is None:
        yield "steps: must be set, or epochs, got neither; give steps=100 or epochs=1"
    if steps is not None and epochs is not None:
        yield f"steps: must be null beside epochs, got steps={steps} and epochs={epochs:g}; set one of them to null"


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
    if isinstance(engine, Single) and world_size > 1:
        yield f"engine: must be one for {world_size} ranks, got single; use engine=auto, or start one process"
    if isinstance(engine, Fsdp) and engine.shard_size and world_size % engine.shard_size:
        fits = _nearest_divisor(world_size, engine.shard_size)
        yield (
            f"engine.shard_size: must divide the {_ranks(world_size)}, got {engine.shard_size}; "
            f"use engine.shard_size={fits}, or null to shard over all"
        )


def _optimizer(optim: AnyOptim, engine: AnyEngine) -> Iterator[str]:
    # ZeRO flattens matrices; PyTorch's Adafactor cannot take its row and column means over a DTensor (seen on 2.13).
    # The blocks of 8-bit moments do not end where shards do.
    if isinstance(optim, Adafactor | AdamW8bit) and isinstance(engine, Fsdp | Zero2 | Zero3):
        yield (
            f"optim: {optim.name} needs each weight whole, which engine={engine.name} splits; "
            "use engine=single, or optim=adamw"
        )


def _decay(optim: AnyOptim, engine: AnyEngine) -> Iterator[str]:
    if optim.weight_decay_on != "all" and isinstance(engine, Zero2 | Zero3):
        yield (
            f"optim.weight_decay_on: must be all with engine={engine.name}, where two groups of weights do other than "
            f"on one process, got {optim.weight_decay_on}; use engine=fsdp, or optim.weight_decay_on=all"
        )


def _optimizer_on_ranks(optim: AnyOptim, engine: AnyEngine, world_size: int) -> Iterator[str]:
    if isinstance(optim, Adafactor | AdamW8bit) and isinstance(engine, Auto) and world_size > 1:
        yield (
            f"optim: {optim.name} needs each weight whole, which engine=auto splits over {world_size} ranks; "
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


def _evaluation(evaluation: Evaluation, data: Data) -> Iterator[str]:
    missing = data.eval is None and not data.eval_fraction
    fix = "set data.eval or data.eval_fraction=0.1"
    if evaluation.patience is not None and evaluation.every is None:
        got = f"{evaluation.patience} with evaluation.every=null"
        yield f"evaluation.patience: must have evaluations to count, got {got}; set evaluation.every=10"
    if evaluation.patience is not None and missing:
        yield f"evaluation.patience: must have held-out rows, got none; {fix}, or evaluation.patience=null"
    if evaluation.every is not None and missing:
        yield f"evaluation.every: must have held-out rows, got none; {fix}, or evaluation.every=null"
    if evaluation.samples and missing:
        yield f"evaluation.samples: must have held-out rows for prompts, got none; {fix}, or evaluation.samples=0"


def _sources(data: Data) -> Iterator[str]:
    for key in ("train", "eval", "replay"):
        given = getattr(data, key)
        if given is None:
            continue
        paths = [_path(item) for item in ([given] if isinstance(given, str) else given)]
        if not paths or not all(path.strip() for path in paths):
            yield f"data.{key}: must name at least one source, got {show(given)}; give data.{key}=my.jsonl"
        yield from (f"data.{key}: must hold no control characters, got {path!r}; rename it" for path in odd(paths))


def _path(item: str | Source) -> str:
    return item if isinstance(item, str) else item.path


def _model(model: Model) -> Iterator[str]:
    yield from model_problems(model, "model")


def _run_root(run_root: str) -> Iterator[str]:
    if not run_root.strip() or CONTROL.search(run_root):
        yield f"run_root: must be a folder's path without control characters, got {run_root!r}; use run_root=runs"


def _model_is_there(model: Model) -> Iterator[str]:
    yield from missing_model(model, "model")


def _data_is_there(data: Data) -> Iterator[str]:
    for key in ("train", "eval", "replay"):
        given = getattr(data, key) or []
        for item in [given] if isinstance(given, str) else given:
            if _path(item).strip():
                yield from problems_of(locate, _path(item), f"data.{key}")
    if data.chat_template is not None and not Path(data.chat_template).expanduser().is_file():
        yield f"data.chat_template: must be a Jinja file that exists, got {data.chat_template}; give its path, or null"


def _resume_is_there(resume: str) -> Iterator[str]:
    path = Path(resume).expanduser()
    if resume in ("auto", "never") or (path / "manifest.json").is_file():
        return
    near = nearest(resume, ["auto", "never", *(str(path.parent / each.name) for each in _folders(path.parent))])
    hint = f"did you mean resume={near}?" if near else "use resume=auto for the newest one"
    yield f"resume: must be auto, never or the folder of a checkpoint, got {resume}; {hint}"


def _folders(parent: Path) -> list[Path]:
    return [path for path in sorted(parent.iterdir()) if path.is_dir()] if parent.is_dir() else []


def _packages(engine: AnyEngine, model: Model, tracking: Tracking) -> Iterator[str]:
    needs = {
        f"engine={engine.name}": "deepspeed" if isinstance(engine, Zero2 | Zero3) else None,
        f"model.quantization={model.quantization}": "bitsandbytes" if model.quantization == "nf4" else None,
        f"tracking={tracking.name}": {"wandb": "wandb", "tensorboard": "tensorboard"}.get(tracking.name),
    }
    for setting, package in needs.items():
        if package and importlib.util.find_spec(package) is None:
            key, _, value = setting.partition("=")
            yield f"{key}: {value} must have the package {package}, which is not installed; pip install {package}"


def _gpu(engine: AnyEngine) -> Iterator[str]:
    if gpu_is_likely():
        return
    for key in ("offload", "offload_optimizer", "offload_params"):
        if getattr(engine, key, False):
            yield f"engine.{key}: must have a GPU to offload from, got a machine without one; use engine.{key}=false"


def gpu_is_likely() -> bool:
    """Whether this process may see a GPU, told by device files and without torch; wrong in favour of a GPU."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1"):
        return False
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd"))


ANYWHERE: tuple[Check, ...] = (
    _length,
    _batch,
    _ranks_of_engine,
    *check_adapter.CHECKS,
    _optimizer,
    _decay,
    _optimizer_on_ranks,
    _warmup,
    _evaluation,
    _sources,
    _model,
    _run_root,
    *check_task.ANYWHERE,
    *check_data.ANYWHERE,
)
ON_DISK: tuple[Check, ...] = (
    _model_is_there,
    _data_is_there,
    _resume_is_there,
    _packages,
    *check_task.HERE,
    *check_data.HERE,
)
HERE: tuple[Check, ...] = (*ON_DISK, _gpu)
