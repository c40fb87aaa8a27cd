"""A language model's output layer: token losses straight from hidden states, so that the full logits never exist.

What the model does around the layer is measured in its own forward pass, not read off its config: each family has
keys of its own for it. Where the layer is plain linear the loss goes by tiles of the vocabulary (`distft.task.loss`),
else (an adapter on it) by a few tokens, whose logits are computed once more in the backward pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from distft.data.document import IGNORED
from distft.task.loss import likeliest_tokens, token_loss, token_losses

CHUNK = 256  # supervised tokens whose logits exist at once where the layer is not plain linear


@dataclass(frozen=True)
class Finish:
    """What a model makes of its output layer's values z: softcap * tanh(scale * (z + bias) / softcap)."""

    scale: float = 1.0
    softcap: float | None = None
    bias: Tensor | None = None
    """Float32 [V]: of a buffer beside the layer, as BART and its kin have it."""

    def __call__(self, values: Tensor) -> Tensor:
        """Float32 [N, V]."""
        values = values.float()
        logits = (values if self.bias is None else values + self.bias) * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


class LmHead:
    """How `model` makes logits of the states that its output layer takes.

    It reads the layer's weights outside its forward pass: a module names them in `read_outside_its_module`.
    """

    def __init__(self, model: PreTrainedModel, finish: Finish | None = None):
        self.layer, self.finish = model.get_output_embeddings(), finish or Finish()

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 [N, V]."""
        return self.finish(self.layer(hidden))

    def loss(self, hidden: Tensor, targets: Tensor, *, smoothing: float = 0.0, factors: Tensor | None = None) -> Tensor:
        """Sum of the token losses, each times its factor, of states `hidden` [N, H]."""
        if self._is_plain:
            return token_loss(hidden, targets=targets, smoothing=smoothing, factors=factors, **self._as_given())
        of_chunk = partial(_cross_entropy, self.logits, smoothing)
        return by_chunks(of_chunk, targets, *([hidden] if factors is None else [hidden, factors]))

    @torch.no_grad()
    def losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The token losses [N] that `loss` sums, 0 where there is no target; without gradients."""
        if self._is_plain:
            return token_losses(hidden, targets=targets, **self._as_given())
        losses = hidden.new_zeros(len(hidden), dtype=torch.float32)
        for rows in (targets != IGNORED).nonzero().squeeze(1).split(CHUNK):
            losses[rows] = F.cross_entropy(self.logits(hidden[rows]), targets[rows], reduction="none")
        return losses

    @torch.no_grad()
    def likeliest(self, hidden: Tensor) -> Tensor:
        """The token [N] with the largest logit, of states [N, H]."""
        if self._is_plain:
            return likeliest_tokens(hidden, self.layer.weight, bias=self._biases())
        parts = [self.logits(part).argmax(-1) for part in hidden.split(CHUNK)]
        return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.long)

    @property
    def _is_plain(self) -> bool:
        return type(self.layer) is nn.Linear

    def _biases(self) -> Tensor | None:
        biases = [bias for bias in (self.layer.bias, self.finish.bias) if bias is not None]
        return sum(biases[1:], biases[0]) if biases else None

    def _as_given(self) -> dict[str, Any]:
        """Arguments for the functions of `distft.task.loss`."""
        return {
            "weight": self.layer.weight,
            "bias": self._biases(),
            "scale": self.finish.scale,
            "softcap": self.finish.softcap,
        }


def states_before_head(model: PreTrainedModel, **inputs: Any) -> Tensor:
    """Hidden states [B, S, H] as the output layer of `model` takes them in the model's own forward pass.

    The layer is given none of them: no logits are made. What a family does to the states before it is done.
    """
    taken: list[Tensor] = []

    def take(layer: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        taken.append(args[0])
        return args[0][:, :0]

    # First of all hooks: what is taken has not passed through what an engine hangs on the layer's backward pass.
    hook = model.get_output_embeddings().register_forward_pre_hook(take, prepend=True)
    try:
        model(**inputs)
    finally:
        hook.remove()
    (states,) = taken
    return states


@torch.no_grad()
def measure_finish(model: PreTrainedModel, **inputs: Any) -> Finish | None:
    """What `model` makes of its output layer's values, seen in a forward pass of its own over one row of `inputs`.

    Known values take the place of the layer's output. None: it is none of `Finish`'s forms, or the layer is not called.
    """
    given: list[Tensor] = []

    def take_one(layer: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        return args[0][:, :1]

    def give_known(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        given.append(_known_values(output.shape[-1]).to(output.device).unsqueeze(0))
        return given[-1]

    layer = model.get_output_embeddings()
    hooks = [layer.register_forward_pre_hook(take_one, prepend=True), layer.register_forward_hook(give_known)]
    try:
        logits = model(**inputs).logits
    finally:
        for hook in hooks:
            hook.remove()
    return _fit(given[0][0], logits[0].float()) if len(given) == 1 and logits.shape == given[0].shape else None


def _known_values(vocabulary: int) -> Tensor:
    """[4, V]: nothing, a thousandth of the largest, values of every size and both signs, and one beyond any cap."""
    spread = torch.linspace(-40, 40, vocabulary)
    return torch.stack(
        [torch.zeros(vocabulary), torch.full((vocabulary,), 2.0**-4), spread, torch.full_like(spread, 2.0**20)]
    )


def _fit(values: Tensor, logits: Tensor) -> Finish | None:
    at_nothing, small, _, large = logits
    softcap, scale, bias = None, float((large - at_nothing)[0] / values[3, 0]), None
    if bool((large == large[0]).all()) and not at_nothing.any() and float(large[0]) < float(small[0]) * 2**20:
        softcap = float(large[0])
        scale = float(torch.atanh(small[0].double() / softcap) * softcap / values[1, 0])
        scale = round(scale) if abs(scale - round(scale)) < 1e-4 else scale
    elif at_nothing.any():
        bias = at_nothing / scale
    found = Finish(scale, softcap, bias)
    return found if torch.allclose(found(values), logits, rtol=1e-4, atol=1e-4) else None


def by_chunks(loss: Callable[..., Tensor], targets: Tensor, *of_tokens: Tensor) -> Tensor:
    """The sum of `loss(targets, *of_tokens)` over the supervised tokens, CHUNK of them at once."""
    total = torch.zeros((), dtype=torch.float32, device=targets.device) + 0 * of_tokens[0].sum().float()
    for rows in (targets != IGNORED).nonzero().squeeze(1).split(CHUNK):
        total = total + checkpoint(loss, targets[rows], *(part[rows] for part in of_tokens), use_reentrant=False)
    return total


def _cross_entropy(
    logits: Callable[[Tensor], Tensor],
    smoothing: float,
    targets: Tensor,
    hidden: Tensor,
    factors: Tensor | None = None,
) -> Tensor:
    losses = F.cross_entropy(logits(hidden), targets, reduction="none", label_smoothing=smoothing)
    return losses.sum() if factors is None else (losses * factors).sum()
