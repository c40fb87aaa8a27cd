"""Whether two models are the same model: their logits on a few rows of real tokens."""

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

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

    def lines(self) -> list[str]:
        return [
            f"{what}: logits differ by {relative:.1e}, losses by {loss:.1e}"
            for what, relative, loss in self.differences
        ] + [f"on {self.tokens} real tokens, in float32"]


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
    device = next(model.parameters()).device
    results = []
    for row in rows:
        own = {"decoder_input_ids": row.to(device)} if getattr(model.config, "is_encoder_decoder", False) else {}
        out = model(input_ids=row.to(device), use_cache=False, **own)
        scores = out.logits if "logits" in out else torch.stack([out.start_logits, out.end_logits], 1)
        virtual = scores.shape[1] - row.shape[1] if scores.dim() == 3 else 0
        results.append(scores[:, max(0, virtual) :].float().cpu())
    return results


def losses(of: Tensor, row: Tensor) -> Tensor:
    """Token losses of a language model; of any other, losses of the classes that it gives."""
    if of.shape[:2] == row.shape and of.shape[-1] > row.max():
        return F.cross_entropy(of[0, :-1], row[0, 1:], reduction="none")
    return -of.log_softmax(-1).amax(-1).flatten()
