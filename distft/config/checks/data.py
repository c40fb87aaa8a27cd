"""Checks between the data and what is measured on it. Imports no torch."""

from collections.abc import Iterator

from distft.config.schema import Data, Evaluation


def _held_out(evaluation: Evaluation, data: Data) -> Iterator[str]:
    if data.holds_out:
        return
    fix = "set data.eval or data.eval_fraction=0.1"
    if evaluation.patience is not None:
        yield f"evaluation.patience: must have held-out rows, got none; {fix}, or evaluation.patience=null"
    if evaluation.every is not None:
        yield f"evaluation.every: must have held-out rows, got none; {fix}, or evaluation.every=null"
    if evaluation.samples:
        yield f"evaluation.samples: must have held-out rows for prompts, got none; {fix}, or evaluation.samples=0"
    if evaluation.earlier:
        yield f"evaluation.earlier: must have held-out rows of the new data beside it, got none; {fix}"


ANYWHERE = (_held_out,)
