"""Which activations are kept for the backward pass, and which are computed again."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from distft.model import attention

NARROW = 128  # an adapter's matmul has its rank as one side: cheap to repeat, and its output is as large as the base's


def checkpoint_activations(model: PreTrainedModel, mode: str) -> None:
    """Recomputation by block. Non-reentrant: it stops early, so each block's last matmul is not done again.

    `full` keeps each block's input. `selective` keeps what takes FLOPs to repeat besides, the outputs of attention and
    of the base's matmuls, and repeats what lies between them: norms, activations, adapters. It watches every operator
    from Python, which small models on a CPU feel more than what it saves them.
    """
    if mode == "none":
        return
    kwargs: dict[str, Any] = {"use_reentrant": False}
    if mode == "selective":
        kept = frozenset(attention.operators())
        kwargs["context_fn"] = partial(create_selective_checkpoint_contexts, partial(_policy, kept))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)


def _policy(kept: frozenset[Any], context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    wide_matmul = operator in _MATMULS and min(_weight(args).shape) >= NARROW
    return CheckpointPolicy.MUST_SAVE if wide_matmul or operator in kept else CheckpointPolicy.PREFER_RECOMPUTE


_MATMULS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default)


def _weight(args: tuple[Any, ...]) -> Tensor:
    """The last matrix: `mm(x, weight)`, `addmm(bias, x, weight)`."""
    return [argument for argument in args if isinstance(argument, Tensor)][-1]
