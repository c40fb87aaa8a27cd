"""Checks between the task and the other sections. Imports no torch."""

import importlib.util
from collections.abc import Iterator

from distft.config.keys import nearest, show
from distft.config.schema import AnyTask, Data, Evaluation, Model, Seq2Seq, Source


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


def _packages(task: AnyTask) -> Iterator[str]:
    missing = [package for module, package in task.PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        yield (
            f"task: {task.name} must have the packages that measure it, got no {', '.join(missing)}; "
            "pip install 'distft[metrics]'"
        )


ANYWHERE = (_formats, _metric, _samples, _attention)
HERE = (_packages,)
