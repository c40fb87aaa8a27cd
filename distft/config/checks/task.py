"""Checks between the task and the other sections. Imports no torch."""

import importlib.util
from collections.abc import Iterator

from distft.config.checks.adapter import HEADLESS, PROMPTS
from distft.config.checks.model import missing_model, model_problems
from distft.config.keys import nearest, show
from distft.config.schema import (
    AnyAdapter,
    AnyTask,
    CausalLm,
    Data,
    Distillation,
    Evaluation,
    ExtractiveQa,
    Full,
    Layers,
    Lora,
    Model,
    Peft,
    Preference,
    Regularisation,
    RelationExtraction,
    Reward,
    Seq2Seq,
    SequenceClassification,
    Source,
    TokenClassification,
)

WithHead = SequenceClassification | TokenClassification | RelationExtraction | ExtractiveQa
"""Tasks whose model gets a head that no base has."""
Smoothed = CausalLm | Seq2Seq | SequenceClassification | TokenClassification | RelationExtraction
"""Tasks whose loss is a cross-entropy over a fixed set of classes."""


def _formats(task: AnyTask, data: Data) -> Iterator[str]:
    given = {"data.format": data.format}
    for key in ("train", "eval", "replay"):
        sources = getattr(data, key)
        for i, source in enumerate(sources if isinstance(sources, list) else []):
            if isinstance(source, Source):
                given[f"data.{key}[{i}].format"] = source.format
    for key, value in given.items():
        if value is not None and value not in task.FORMATS:
            near = nearest(value, task.FORMATS)
            fix = (
                f"did you mean {key}={near}?" if near else f"leave it out to have it read off the columns ({key}=null)"
            )
            yield f"{key}: must be one of {', '.join(task.FORMATS)} for task={task.name}, got {show(value)}; {fix}"


def _metric(task: AnyTask, evaluation: Evaluation) -> Iterator[str]:
    known = ["loss", *task.METRICS]
    if evaluation.metric not in known:
        near = nearest(evaluation.metric, known) or "loss"
        yield (
            f"evaluation.metric: must be one of {', '.join(known)} for task={task.name}, got "
            f"{show(evaluation.metric)}; did you mean evaluation.metric={near}?"
        )
    elif isinstance(task, CausalLm) and evaluation.metric in task.METRICS and not task.exact_match:
        yield (
            f"evaluation.metric: must be measured, got {evaluation.metric} with task.exact_match=false; "
            "set task.exact_match=true, or evaluation.metric=loss"
        )


def _samples(task: AnyTask, evaluation: Evaluation) -> Iterator[str]:
    if evaluation.samples and not task.REPLIES:
        yield (
            f"evaluation.samples: must be 0 for task={task.name}, whose model writes no replies, "
            f"got {evaluation.samples}; set evaluation.samples=0"
        )


def _attention(task: AnyTask, model: Model) -> Iterator[str]:
    if isinstance(task, Seq2Seq) and model.attention not in ("auto", "sdpa", "eager"):
        yield (
            "model.attention: must be auto, sdpa or eager for task=seq2seq, whose models pad their batches, got "
            f"{model.attention}; set model.attention=auto"
        )


def _method(task: AnyTask, adapter: AnyAdapter) -> Iterator[str]:
    if isinstance(task, CausalLm):
        return
    if adapter.method in PROMPTS:
        yield (
            f"adapter.method: must be one that task={task.name} can use, got {adapter.method}, whose virtual tokens "
            "only task=causal_lm passes over; use adapter=lora"
        )
    if adapter.method in HEADLESS and isinstance(task, WithHead | Reward):
        yield (
            f"adapter.method: must be one that is saved with the new head of task={task.name}, got {adapter.method}, "
            "in whose files PEFT keeps no other modules; use adapter=lora"
        )
    if adapter.method == "adaption_prompt" and isinstance(task, Seq2Seq):
        yield (
            "adapter.method: must know the attention of an encoder-decoder with task=seq2seq, got adaption_prompt, "
            "which PEFT has for decoders alone; use adapter=lora"
        )
    if isinstance(task, Seq2Seq) and isinstance(adapter, Full | Layers) and adapter.unfreeze_every is not None:
        yield (
            "adapter.unfreeze_every: must be null with task=seq2seq, since every block of its decoder leads to the "
            f"whole encoder, got {adapter.unfreeze_every}; use adapter.unfreeze_every=null"
        )


def _bottleneck(task: AnyTask, adapter: AnyAdapter, model: Model) -> Iterator[str]:
    if adapter.method == "bottleneck" and model.quantization != "none" and not isinstance(task, CausalLm):
        yield (
            f"model.quantization: must be none with adapter=bottleneck on task={task.name}, whose encoders have their "
            f"sublayers as linear layers, which {model.quantization} stores in another form; use adapter=lora"
        )


def _regularisation(task: AnyTask, regularisation: Regularisation) -> Iterator[str]:
    if regularisation.label_smoothing and not isinstance(task, Smoothed):
        yield (
            f"regularisation.label_smoothing: must be 0 with task={task.name}, whose loss has no fixed set of classes, "
            f"got {regularisation.label_smoothing:g}; use regularisation.label_smoothing=0"
        )
    if regularisation.r_drop and not isinstance(task, CausalLm):
        yield (
            f"regularisation.r_drop: is part of the loss of task=causal_lm, got {regularisation.r_drop:g} with "
            f"task={task.name}; use regularisation.r_drop=0"
        )
    for name in ("neftune_alpha", "fgm_epsilon"):
        value = getattr(regularisation, name)
        if value and not isinstance(task, CausalLm | Distillation | WithHead):
            yield (
                f"regularisation.{name}: must have one text a row to act on, got {value:g} with task={task.name}; "
                f"use regularisation.{name}=0"
            )


def _teacher(task: AnyTask) -> Iterator[str]:
    if isinstance(task, Distillation):
        yield from model_problems(task.teacher, "task.teacher")
        if task.cache and task.top_k is None:
            yield "task.top_k: must be set where task.cache keeps what the teacher says, got null; set task.top_k=64"
        if task.cache and task.teacher.random_init is not None:
            yield (
                "task.cache: must be false where the teacher is drawn from the seed, got true with "
                "task.teacher.random_init; set task.cache=false"
            )


def _teacher_is_there(task: AnyTask) -> Iterator[str]:
    if isinstance(task, Distillation):
        yield from missing_model(task.teacher, "task.teacher")


def _packages(task: AnyTask) -> Iterator[str]:
    missing = [package for module, package in task.PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        yield (
            f"task: {task.name} must have the packages that measure it, got no {', '.join(missing)}; "
            "pip install 'distft[metrics]'"
        )


def _preference(task: AnyTask) -> Iterator[str]:
    if not isinstance(task, Preference):
        return
    for key, owner in (("label_smoothing", "dpo"), ("gamma", "simpo")):
        value = getattr(task, key)
        if value and task.loss != owner:
            off = "0" if key == "label_smoothing" else "null"
            yield (
                f"task.{key}: must be {off} but for task.loss={owner}, got {show(value)} with {task.loss}; "
                f"set task.{key}={off}"
            )


def _reference(task: AnyTask, adapter: AnyAdapter) -> Iterator[str]:
    if not isinstance(task, Preference) or not task.has_reference:
        return
    if not isinstance(adapter, Lora | Peft):
        yield (
            f"adapter: must be one that can be switched off where the base is the reference of task.loss={task.loss}, "
            f"got {adapter.method}; use adapter=lora, or a task.loss without a reference: orpo, simpo"
        )
    elif isinstance(adapter, Lora) and adapter.init in ("pissa", "olora", "loftq"):
        yield (
            f"adapter.init: must leave the base as it is where that is the reference of task.loss={task.loss}, got "
            f"{adapter.init}, which moves a part of it into the adapter; set adapter.init=default"
        )


ANYWHERE = (
    _formats,
    _metric,
    _samples,
    _attention,
    _method,
    _bottleneck,
    _regularisation,
    _preference,
    _reference,
    _teacher,
)
HERE = (_teacher_is_there, _packages)
