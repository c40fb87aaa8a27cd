"""A language model's output layer: token losses straight from hidden states, so that the full logits never exist.

Where the layer is plain linear the loss goes by tiles of the vocabulary (`distft.task.loss`), else (an adapter on it)
by a few tokens, whose logits are computed once more in the backward pass.
"""

from collections.abc import Callable
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


class LmHead:
    """How `model` makes logits of last hidden states: softcap * tanh(scale * (layer(states) + bias) / softcap).

    It reads the layer's weights outside its forward pass: a module names them in `read_outside_its_module`.
    """

    def __init__(self, model: PreTrainedModel):
        config = model.config
        self.layer = model.get_output_embeddings()
        self.scale: float = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        bias = getattr(model, "final_logits_bias", None)  # a buffer beside the layer: BART and its kin
        self.bias: Tensor | None = None if bias is None else bias.flatten()

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 [N, V]."""
        return self.finished(self.layer(hidden))

    def finished(self, output: Tensor) -> Tensor:
        """What the model makes of its layer's output, in float32."""
        output = output.float()
        logits = (output if self.bias is None else output + self.bias) * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

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
        biases = [bias for bias in (self.layer.bias, self.bias) if bias is not None]
        return sum(biases[1:], biases[0]) if biases else None

    def _as_given(self) -> dict[str, Any]:
        """Arguments for the functions of `distft.task.loss`."""
        return {"weight": self.layer.weight, "bias": self._biases(), "scale": self.scale, "softcap": self.softcap}


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
