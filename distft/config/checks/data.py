"""Checks of the data: what is held out, what is replayed, what is measured again. Imports no torch."""

import re
from collections.abc import Iterator

from distft.config.schema import Data, Evaluation
from distft.errors import ConfigError
from distft.runtime.location import locate

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def _held_out(data: Data) -> Iterator[str]:
    if data.eval is not None and data.eval_fraction:
        yield (
            f"data.eval_fraction: must be 0 where data.eval is set, got {data.eval_fraction:g}; "
            "set data.eval_fraction=0 or data.eval=null"
        )


def _replay(data: Data) -> Iterator[str]:
    if data.replay is None and data.replay_share != Data.model_fields["replay_share"].get_default():
        yield f"data.replay_share: belongs to data.replay, got {data.replay_share:g}; give data.replay=OLD.jsonl"
    if data.replay is not None and not data.replay_share:
        yield "data.replay_share: must be > 0 with data.replay, got 0; set data.replay=null to replay nothing"


def _earlier(data: Data, evaluation: Evaluation) -> Iterator[str]:
    for name in evaluation.earlier:
        if not _NAME.fullmatch(name):
            yield (
                f"evaluation.earlier: names must be letters, digits and . _ -, got {name!r}; rename it, as in "
                "evaluation.earlier={old: old.jsonl}"
            )
    if evaluation.earlier and data.eval is None and not data.eval_fraction:
        yield (
            "evaluation.earlier: must have held-out rows of the new data beside it, got none; set data.eval or "
            "data.eval_fraction=0.1"
        )


def _earlier_is_there(evaluation: Evaluation) -> Iterator[str]:
    for name, path in evaluation.earlier.items():
        try:
            locate(path, f"evaluation.earlier.{name}")
        except ConfigError as error:
            yield from error.problems


ANYWHERE = (_held_out, _replay, _earlier)
HERE = (_earlier_is_there,)
