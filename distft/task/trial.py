"""Which of a model's ways of running documents computes what the model itself does: tried before the first batch.

Whether layers carry a state from one document to the next, whether attention is told all it needs, what a head does to
its values: families answer in too many ways to read it off a config. So the model is asked.
"""

import logging
import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from distft.data.document import IGNORED
from distft.data.loader import Batch
from distft.errors import ConfigError
from distft.model import attention, isolation, packed
from distft.model.isolation import Way

logger = logging.getLogger(__name__)

LENGTHS = (14, 6, 9)
SAME = {torch.float32: 1e-4, torch.bfloat16: 6e-2}
"""Relative distance that two orders of summation may make, by the dtype of matmuls."""


class Tried(Protocol):
    """What is tried: a task's module."""

    padded: bool
    compute: torch.dtype

    @property
    def base(self) -> PreTrainedModel: ...

    def own(self, document: Tensor) -> Tensor: ...

    def made(self, batch: Batch) -> Tensor: ...


@dataclass(frozen=True)
class Settled:
    """The way that was taken, and how near it is to the model's own forward pass."""

    way: Way
    differs: float
    """Of the model's own outputs on each document alone, relative to their size."""
    moves: float
    """What one changed token moves elsewhere: before it in its document, and in the others; relative."""
    passed_over: dict[str, str] = field(default_factory=dict)
    """Ways before it in the order, with the reason."""


@torch.no_grad()
def settle(module: Tried, rows: list[Tensor] | None = None) -> Settled:
    """Tries the ways of `module` in their order, on `rows` (token ids [L]) or made-up ones, and leaves it in the first
    that is right. All ranks call it with the same rows.

    Raises ConfigError where none is.
    """
    base, passed_over = module.base, dict[str, str]()
    documents = rows or made_up(base)
    with isolation.run_by(base, "eager"):
        expected = [_own(module, document) for document in documents]
    for way in isolation.offered(base):
        if not way.padded and not packed.takes_positions(base):
            passed_over[str(way)] = "it takes no positions"
            continue
        isolation.switch(base, way.attention)
        module.padded = way.padded
        try:
            with attention.trial() as unmet:
                differs, moves = _distances(module, documents, expected)
        except Exception as error:  # noqa: BLE001 - a family's own code, run in a way it may not know
            passed_over[str(way)] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            continue
        if unmet:
            passed_over[str(way)] = unmet[0]
        elif not max(differs, moves) <= SAME[module.compute]:  # NaN is not near
            moved = "" if math.isnan(moves) else f", and a changed token moves others by {moves:.1e}"
            passed_over[str(way)] = f"its outputs are off by {differs:.1e}{moved}"
        else:
            if passed_over:
                told = "; ".join(f"not by {other}: {why}" for other, why in passed_over.items())
                logger.warning("documents of a %s are run by %s (%s)", base.config.model_type, way, told)
            return Settled(way, differs, moves, passed_over)
    told = "; ".join(f"{way}: {why}" for way, why in passed_over.items())
    raise ConfigError(
        f"model.attention: must be one by which documents are kept apart as the model itself computes them, and none "
        f"is for a {base.config.model_type} ({told}); set model.attention=auto, or take another model"
    )


def _own(module: Tried, document: Tensor) -> Tensor:
    try:
        return module.own(document)
    except ConfigError:
        raise
    except Exception as error:  # a family's own code, on a config that it does not know
        raise ConfigError(
            f"model.source: must be a model that transformers itself can run, and a {module.base.config.model_type} "
            f"ends in {type(error).__name__}: {' '.join(str(error).split())[:200]}; mend its config, or "
            "take another model"
        ) from error


def made_up(model: PreTrainedModel) -> list[Tensor]:
    """Token ids of a few short documents, spread over the middle of the vocabulary."""
    device, vocabulary = next(model.parameters()).device, model.config.get_text_config().vocab_size
    low, high = vocabulary // 8, vocabulary // 2
    total = sum(LENGTHS)
    ids = low + torch.arange(total, device=device) * 7919 % max(1, high - low)
    return list(ids.split(LENGTHS))


def _distances(module: Tried, documents: list[Tensor], expected: list[Tensor]) -> tuple[float, float]:
    """`differs` and `moves` of `Settled`; NaN for what was not looked at any more."""
    lengths = [len(document) for document in documents]
    measure = _furthest if module.compute == torch.float32 else _far
    made = module.made(as_batch(documents)).split(lengths)
    differs = max(measure(a, b) for a, b in zip(made, expected, strict=True))
    if differs > SAME[module.compute] or math.isnan(differs):
        return differs, float("nan")
    moves = 0.0
    for number, document in enumerate(documents[:2]):
        at = len(document) // 2
        changed = [other.clone() for other in documents]
        changed[number][at] = documents[number - 1][0]
        again = module.made(as_batch(changed)).split(lengths)
        for other, (a, b) in enumerate(zip(again, made, strict=True)):
            if other != number:
                moves = max(moves, measure(a, b))
            elif not packed.sees_ahead(module.base) and at:
                moves = max(moves, measure(a[:at], b[:at]))
    return differs, moves


def _each(ours: Tensor, theirs: Tensor) -> Tensor:
    """Relative distance of each token's values."""
    ours, theirs = ours.float().flatten(1), theirs.float().flatten(1)
    return (ours - theirs).norm(dim=1) / theirs.norm(dim=1).clamp_min(1e-6)


def _furthest(ours: Tensor, theirs: Tensor) -> float:
    return _each(ours, theirs).max().item()


def _far(ours: Tensor, theirs: Tensor) -> float:
    """What most tokens keep to: where a router's choice is a near thing, rounding may turn it for one of them."""
    return _each(ours, theirs).quantile(0.75).item()


def as_batch(documents: list[Tensor]) -> Batch:
    """Side by side in one row, nothing supervised."""
    ids = torch.cat(documents).unsqueeze(0)
    lengths = torch.tensor([len(document) for document in documents], device=ids.device)
    ends = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    starts = ends[:-1].repeat_interleave(lengths)
    positions = (torch.arange(ids.shape[1], device=ids.device) - starts).unsqueeze(0)
    return Batch(
        ids,
        positions,
        torch.full_like(ids, IGNORED),
        ends.int(),
        max_document=int(lengths.max()),
        num_tokens=ids.numel(),
        num_targets=0,
        seed=0,
        documents=tuple(range(len(documents))),
        segments=torch.stack([ends[:-1], ends[1:]], 1).unsqueeze(1),
    )
