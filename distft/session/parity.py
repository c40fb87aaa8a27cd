"""Whether two models are the same model: their logits on a few rows of real tokens."""

import inspect
import logging
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from distft.config import schema
from distft.data.prepare import prepare
from distft.errors import ConfigError, DistftError
from distft.task import build as tasks

logger = logging.getLogger(__name__)

NUM_ROWS, ROW_TOKENS = 8, 64
SAME = 1e-4
"""Relative difference of float32 logits that two orders of summation may make."""
ROUNDED = 3e-2
"""Relative difference that rounding the weights to bfloat16 may make. Measured on SmolLM2-135M (30 layers) with an
adapter of 1 % of the weights' size: 6e-3 on a bfloat16 base, 1.1e-2 on a decoded NF4 base; it grows as the
root of the depth. An NF4 run's adapter on the base that was not quantised: 0.56."""
PROSE = "The quick brown fox jumps over the lazy dog. 1 + 1 = 2, and water boils at 100 degrees Celsius at sea level."


@dataclass
class ParityReport:
    """What was compared, and how near it was."""

    tokens: int
    auto_class: str = "AutoModelForCausalLM"
    """The class of transformers that loads the model."""
    differences: list[tuple[str, float, float]] = field(default_factory=list)
    """What, relative difference of the logits, mean difference of a token's loss."""

    padded: str | None = None
    """How a padded batch compares with its rows alone."""

    def lines(self) -> list[str]:
        compared = [
            f"{what}: logits differ by {relative:.1e}, losses by {loss:.1e}"
            for what, relative, loss in self.differences
        ]
        return [*compared, *([self.padded] if self.padded else []), f"on {self.tokens} real tokens, in float32"]


class Parity:
    """The trained model's logits, remembered, and all that is compared with them."""

    def __init__(self, rows: list[Tensor], trained: nn.Module):
        self._rows, self._reference = rows, logits(trained, rows)
        self.report = ParityReport(sum(row.numel() for row in rows))

    def require(self, model: nn.Module, what: str, tolerance: float) -> None:
        """Raises DistftError where `model` is further from the trained one than `tolerance`."""
        ours = logits(model, self._rows)
        distance = sum((a - b).square().sum().item() for a, b in zip(ours, self._reference, strict=True))
        size = sum(b.square().sum().item() for b in self._reference)
        relative = (distance / size) ** 0.5
        pairs = list(zip(self._rows, ours, self._reference, strict=True))
        loss = torch.cat([(losses(a, row) - losses(b, row)).abs() for row, a, b in pairs]).mean().item()
        self.report.differences.append((what, relative, loss))
        if not relative <= tolerance:  # NaN is no parity
            raise DistftError(
                f"export: {what} must agree with the trained model, its logits differ by {relative:.1e} of their size "
                f"(allowed {tolerance:.0e}), losses by {loss:.1e} on average; nothing was exported"
            )

    def require_padded(self, model: PreTrainedModel) -> None:
        """Compares rows of unequal length in one padded batch with each of them alone.

        Raises DistftError where `model` classifies and they differ. One that generates pads on the left; families that
        carry what padding leaves behind are told of.
        """
        rows = [row[:, : max(2, row.shape[1] - 3 * i)] for i, row in enumerate([*self._rows[:4], self._rows[0]])]
        alone, batch = logits(model, rows), padded_logits(model, rows)
        distance = sum((a - b).square().sum().item() for a, b in zip(batch, alone, strict=True))
        relative = (distance / sum(b.square().sum().item() for b in alone)) ** 0.5
        side = "left" if _pads_left(model) else "right"
        if relative <= SAME:
            self.report.padded = f"in a batch padded on the {side}: logits differ by {relative:.1e}"
        elif side == "left":
            logger.warning(
                "%s in a batch padded on the left differs from rows alone by %.1e of its logits, as its "
                "family does in transformers; generate row by row",
                type(model).__name__,
                relative,
            )
        else:
            raise DistftError(
                "export: a batch padded on the right must give what its rows give alone, logits differ by "
                f"{relative:.1e} of their size (allowed {SAME:.0e}); nothing was exported"
            )


def check_rows(config: schema.Config, tokenizer: PreTrainedTokenizerFast, facts: dict[str, Any] | None) -> list[Tensor]:
    """The first tokens of a few held-out documents; where the data is not there, of a sentence."""
    try:
        prepared = prepare(config.data, tasks.build(config.task).reader(tokenizer, config.data, facts))
    except ConfigError as error:
        logger.warning("%s; the export is checked on a sentence instead", error.problems[0])
        return [tokenizer(PROSE, return_tensors="pt").input_ids]
    corpus = prepared.eval or prepared.train
    chosen = range(0, corpus.num_documents, max(1, corpus.num_documents // NUM_ROWS))[:NUM_ROWS]
    return [torch.from_numpy(corpus.document(i)[0][:ROW_TOKENS]).unsqueeze(0) for i in chosen]


@torch.no_grad()
def logits(model: nn.Module, rows: list[Tensor]) -> list[Tensor]:
    """Float32 logits on the CPU, row by row: whatever scores the model gives. Those of virtual tokens are left out."""
    model.eval()
    results = []
    for row in rows:
        scores = _scores(model, row, {})
        virtual = scores.shape[1] - row.shape[1] if scores.dim() == 3 else 0
        results.append(scores[:, max(0, virtual) :])
    return results


@torch.no_grad()
def padded_logits(model: PreTrainedModel, rows: list[Tensor]) -> list[Tensor]:
    """The same of all rows in one batch with a mask, padded as the model is used: on the left where it generates."""
    model.eval()
    longest, left, pad = max(row.shape[1] for row in rows), _pads_left(model), model.config.pad_token_id or 0
    places = [slice(longest - row.shape[1], None) if left else slice(row.shape[1]) for row in rows]
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros_like(ids)
    for i, (row, place) in enumerate(zip(rows, places, strict=True)):
        ids[i, place], mask[i, place] = row[0], 1
    more = {"attention_mask": mask}
    if left and "position_ids" in inspect.signature(model.forward).parameters:
        more["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    scores = _scores(model, ids, more)
    if scores.dim() == 2:
        return list(scores.split(1))
    spans = scores.shape[1] == 2 and scores.shape[2] == longest  # starts and ends of answers
    return [scores[i : i + 1, :, p] if spans else scores[i : i + 1, p] for i, p in enumerate(places)]


def _pads_left(model: PreTrainedModel) -> bool:
    return bool(model.can_generate()) and not model.config.is_encoder_decoder


def _scores(model: nn.Module, ids: Tensor, more: dict[str, Tensor]) -> Tensor:
    device = next(model.parameters()).device
    given = {name: value.to(device) for name, value in {"input_ids": ids, **more}.items()}
    if getattr(model.config, "is_encoder_decoder", False):
        given["decoder_input_ids"] = given["input_ids"]
    out = model(use_cache=False, **given)
    scores = out.logits if "logits" in out else torch.stack([out.start_logits, out.end_logits], 1)
    return scores.float().cpu()


def losses(of: Tensor, row: Tensor) -> Tensor:
    """Token losses of a language model; of any other, losses of the classes that it gives."""
    if of.shape[:2] == row.shape and of.shape[-1] > row.max():
        return F.cross_entropy(of[0, :-1], row[0, 1:], reduction="none")
    return -of.log_softmax(-1).amax(-1).flatten()
