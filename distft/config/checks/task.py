"""Checks between the task and the other sections. Imports no torch."""

import importlib.util
from collections.abc import Iterator

from distft.config.keys import nearest, show
from distft.config.schema import AnyAdapter, AnyTask, Data, Evaluation, Model, Regularisation


def _formats(task: AnyTask, data: Data) -> Iterator[str]:
    given = {"data.format": data.format}
    for key, sources in data.sources.items():
        given |= {f"data.{key}[{i}].format": source.format for i, source in enumerate(sources)}
    known = task.traits.formats
    for key, value in given.items():
        if value is not None and value not in known:
            near = nearest(value, known)
            fix = (
                f"did you mean {key}={near}?" if near else f"leave it out to have it read off the columns ({key}=null)"
            )
            yield f"{key}: must be one of {', '.join(known)} for task={task.name}, got {show(value)}; {fix}"


def _metric(task: AnyTask, evaluation: Evaluation) -> Iterator[str]:
    known, switch = ["loss", *task.traits.metrics], task.traits.measured_if
    if evaluation.metric not in known:
        near = nearest(evaluation.metric, known) or "loss"
        yield (
            f"evaluation.metric: must be one of {', '.join(known)} for task={task.name}, got "
            f"{show(evaluation.metric)}; did you mean evaluation.metric={near}?"
        )
    elif evaluation.metric != "loss" and switch and not getattr(task, switch):
        yield (
            f"evaluation.metric: must be measured, got {evaluation.metric} with task.{switch}=false; "
            f"set task.{switch}=true, or evaluation.metric=loss"
        )


def _samples(task: AnyTask, evaluation: Evaluation) -> Iterator[str]:
    if evaluation.samples and not task.traits.replies:
        yield (
            f"evaluation.samples: must be 0 for task={task.name}, whose model writes no replies, "
            f"got {evaluation.samples}; set evaluation.samples=0"
        )


def _attention(task: AnyTask, model: Model) -> Iterator[str]:
    if task.traits.pads and model.attention not in ("auto", "sdpa", "eager"):
        yield (
            f"model.attention: must be auto, sdpa or eager for task={task.name}, whose models pad their batches, got "
            f"{model.attention}; set model.attention=auto"
        )


def _method(task: AnyTask, adapter: AnyAdapter) -> Iterator[str]:
    if adapter.traits.virtual_tokens and not task.traits.virtual_tokens:
        yield (
            f"adapter.method: must be one that task={task.name} can use, got {adapter.method}, whose virtual tokens "
            "its model does not pass over; use adapter=lora"
        )
    if task.traits.has_head and not adapter.traits.keeps_heads:
        yield (
            f"adapter.method: must be one that is saved with the new head of task={task.name}, got {adapter.method}, "
            "in whose files PEFT keeps no other modules; use adapter=lora"
        )
    if task.traits.encoder_decoder and adapter.traits.decoders_only:
        yield (
            f"adapter.method: must know the attention of an encoder-decoder with task={task.name}, got "
            f"{adapter.method}, which PEFT has for decoders alone; use adapter=lora"
        )
    if task.traits.encoder_decoder and adapter.traits.unfreeze_every is not None:
        yield (
            f"adapter.unfreeze_every: must be null with task={task.name}, since every block of its decoder leads to "
            f"the whole encoder, got {adapter.traits.unfreeze_every}; use adapter.unfreeze_every=null"
        )


def _sublayers(task: AnyTask, adapter: AnyAdapter, model: Model) -> Iterator[str]:
    if adapter.traits.wraps_sublayers and model.quantization != "none" and task.traits.linear_sublayers:
        yield (
            f"model.quantization: must be none with adapter={adapter.method} on task={task.name}, whose encoders have "
            f"their sublayers as linear layers, which {model.quantization} stores in another form; use adapter=lora"
        )


def _regularisation(task: AnyTask, regularisation: Regularisation) -> Iterator[str]:
    if regularisation.label_smoothing and not task.traits.smoothed:
        yield (
            f"regularisation.label_smoothing: must be 0 with task={task.name}, whose loss has no fixed set of classes, "
            f"got {regularisation.label_smoothing:g}; use regularisation.label_smoothing=0"
        )
    if regularisation.r_drop and not task.traits.r_drop:
        yield (
            f"regularisation.r_drop: must be 0 with task={task.name}, whose loss does not compare two dropout masks, "
            f"got {regularisation.r_drop:g}; use regularisation.r_drop=0"
        )
    for name in ("neftune_alpha", "fgm_epsilon"):
        value = getattr(regularisation, name)
        if value and not task.traits.one_text:
            yield (
                f"regularisation.{name}: must have one text a row to act on, got {value:g} with task={task.name}; "
                f"use regularisation.{name}=0"
            )


def _reference(task: AnyTask, adapter: AnyAdapter) -> Iterator[str]:
    reference, changed = task.traits.reference, adapter.traits.changes_base
    if reference and not adapter.traits.is_peft:
        yield (
            f"adapter: must be one that can be switched off where the base is the reference of {reference}, "
            f"got {adapter.method}; use adapter=lora, or a task.loss without a reference"
        )
    elif reference and changed:
        yield (
            f"adapter.init: must leave the base as it is where that is the reference of {reference}, got "
            f"{changed}, which moves a part of it into the adapter; set adapter.init=default"
        )


def _packages(task: AnyTask) -> Iterator[str]:
    packages = task.traits.packages
    missing = [package for module, package in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        yield (
            f"task: {task.name} must have the packages that measure it, got no {', '.join(missing)}; "
            "pip install 'distft[metrics]'"
        )


ANYWHERE = (_formats, _metric, _samples, _attention, _method, _sublayers, _regularisation, _reference)
ON_DISK = (_packages,)
