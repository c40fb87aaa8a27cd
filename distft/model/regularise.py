"""What is done to a model in training alone, by hooks on its modules; where nothing is asked for, no hook is set."""

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.adalora.layer import AdaLoraLayer
from torch import Tensor, nn

from distft.config import schema
from distft.model.adapter.peft_methods import ADAPTER
from distft.runtime.seed import derive_seed


class Regulariser:
    """The hooks of a model. `begin` before each forward pass, `with_penalty` after it."""

    def __init__(self, model: Any, settings: schema.Regularisation):
        self._parts: list[EmbeddingNoise | Adversary] = []
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        if settings.neftune_alpha:
            self._parts.append(EmbeddingNoise(base.get_input_embeddings(), settings.neftune_alpha))
        if settings.fgm_epsilon:
            self._parts.append(Adversary(base.get_input_embeddings(), settings.fgm_epsilon))
        self.passes = 2 if settings.fgm_epsilon else 1
        """Forward and backward passes over each batch, of which the mean is taken."""
        self._orthogonality = None
        layers = [module for module in model.modules() if isinstance(module, AdaLoraLayer)]
        if layers and model.peft_config[ADAPTER].orth_reg_weight:
            self._orthogonality = Orthogonality(layers, model.peft_config[ADAPTER].orth_reg_weight)

    @property
    def knows_rows(self) -> bool:
        """Whether embeddings are changed by where documents lie in the batch's rows."""
        return bool(self._parts)

    def begin(self, training: bool, seed: int, ends: Tensor) -> None:
        """`seed` of the batch; `ends` of its documents over the flat tokens."""
        for part in self._parts:
            part.begin(training, seed, ends)
        if self._orthogonality is not None:
            self._orthogonality.begin(training)

    def with_penalty(self, loss: Tensor, num_targets: int) -> Tensor:
        """`loss`, a sum over `num_targets`, with the gradient of what is to be added to its mean, and its own value.

        Each batch adds its share of the step's targets, so that a step has the penalty once.
        """
        penalty = self._orthogonality.value() if self._orthogonality is not None else None
        if penalty is None:
            return loss
        penalty = penalty * num_targets
        return loss + (penalty - penalty.detach())


class EmbeddingNoise:
    """NEFTune (arXiv:2310.05914): embeddings + alpha / sqrt(L d) * U(-1, 1), L the tokens of the document."""

    def __init__(self, embeddings: nn.Module, alpha: float):
        self.alpha = alpha
        self._now: tuple[int, Tensor] | None = None
        embeddings.register_forward_hook(self._add)

    def begin(self, training: bool, seed: int, ends: Tensor) -> None:
        self._now = (derive_seed(seed, "neftune"), ends) if training else None

    def _add(self, module: nn.Module, args: tuple[Any, ...], embedded: Tensor) -> Tensor | None:
        if self._now is None:
            return None
        seed, ends = self._now
        # Drawn on the host: every device and engine then has the same noise.
        noise = torch.rand(embedded.shape, generator=torch.Generator().manual_seed(seed)).to(embedded.device)
        lengths = ends.diff()
        length = lengths.repeat_interleave(lengths).view(*embedded.shape[:2], 1)
        scale = self.alpha / (length * embedded.shape[-1]).sqrt()
        return embedded + ((2 * noise - 1) * scale).to(embedded.dtype)


class Adversary:
    """FGM (arXiv:1605.07725): the second pass adds epsilon * g / |g| to a document's embeddings, g their gradient."""

    def __init__(self, embeddings: nn.Module, epsilon: float):
        self.epsilon = epsilon
        self._ends: Tensor | None = None
        self._attack: Tensor | None = None
        self._gradient: Tensor | None = None
        embeddings.register_forward_hook(self._watch_or_attack)

    def begin(self, training: bool, seed: int, ends: Tensor) -> None:
        self._ends = ends if training else None
        self._attack, self._gradient = self._gradient if training else None, None

    def _watch_or_attack(self, module: nn.Module, args: tuple[Any, ...], embedded: Tensor) -> Tensor | None:
        if self._ends is None:
            return None
        if self._attack is not None:
            return embedded + self._direction(self._attack, self._ends).to(embedded.dtype)
        if not embedded.requires_grad:  # frozen embeddings: what stands above them needs a leaf to have a gradient by
            embedded = embedded.detach().requires_grad_()
        embedded.register_hook(self._keep)
        return embedded

    def _keep(self, gradient: Tensor) -> None:
        self._gradient = gradient.detach()

    def _direction(self, gradient: Tensor, ends: Tensor) -> Tensor:
        squares = gradient.float().square().sum(-1).flatten()
        document = torch.arange(len(ends) - 1, device=ends.device).repeat_interleave(ends.diff())
        norms = torch.zeros(len(ends) - 1, device=ends.device).index_add_(0, document, squares).sqrt()
        each = norms[document].view(*gradient.shape[:2], 1)
        return self.epsilon * gradient / each.clamp_min(torch.finfo(each.dtype).tiny)


class Orthogonality:
    """AdaLoRA's regulariser (arXiv:2303.10512, eq. 4): how far its singular vectors are from orthonormal.

    Taken in each layer's forward pass, where a sharded engine has its parameters whole.
    """

    def __init__(self, layers: list[Any], weight: float):
        self.weight = weight
        self._terms: list[Tensor] = []
        self._on = False
        for layer in layers:
            layer.register_forward_hook(self._add)

    def begin(self, training: bool) -> None:
        self._terms, self._on = [], training  # recomputation in the backward pass may have left some

    def value(self) -> Tensor | None:
        terms, self._terms, self._on = self._terms, [], False
        return self.weight * torch.stack(terms).mean() if terms else None

    def _add(self, layer: Any, args: tuple[Any, ...], output: Tensor) -> None:
        if self._on:
            for gram in (_gram(layer.lora_A[ADAPTER].float()), _gram(layer.lora_B[ADAPTER].float().t())):
                self._terms.append(torch.norm(gram - torch.eye(len(gram), device=gram.device)))


def _gram(vectors: Tensor) -> Tensor:
    return vectors @ vectors.t()
