"""Checks between the task and the other sections. Imports no torch."""

import importlib.util
from collections.abc import Iterator

from distft.config.check_model import missing_model, model_problems
from distft.config.keys import nearest, show
from distft.config.schema import AnyTask, Data, Distillation, Evaluation, Full, Lora, Model, Preference, Seq2Seq, Source


def _formats(task: AnyTask, data: Data) -> Iterator[str]:
    given = {"data.format": data.format}
    for key in ("train", "eval"):
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


def _reference(task: AnyTask, adapter: Lora | Full) -> Iterator[str]:
    if not isinstance(task, Preference) or not task.has_reference:
        return
    if isinstance(adapter, Full):
        yield (
            f"adapter: must be one that can be switched off where the base is the reference of task.loss={task.loss}, "
            "got full; use adapter=lora, or a task.loss without a reference: orpo, simpo"
        )
    elif adapter.init in ("pissa", "olora", "loftq"):
        yield (
            f"adapter.init: must leave the base as it is where that is the reference of task.loss={task.loss}, got "
            f"{adapter.init}, which moves a part of it into the adapter; set adapter.init=default"
        )


ANYWHERE = (_formats, _metric, _samples, _attention, _preference, _reference, _teacher)
HERE = (_teacher_is_there, _packages)
