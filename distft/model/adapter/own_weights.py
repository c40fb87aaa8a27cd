"""A part of the model's own weights trains: all, the last blocks, the biases, or the head."""

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from distft.config import schema
from distft.errors import ConfigError


def blocks(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    """The transformer blocks, from the bottom up, by name."""
    kinds = set(model._no_split_modules or ())
    # By the names of all base classes: FSDP2 gives a block a class of its own.
    named = [(name, module, {kind.__name__ for kind in type(module).__mro__}) for name, module in model.named_modules()]
    # They are numbered: BERT asks for its embeddings to be kept whole too, and they are no block.
    return [(name, module) for name, module, names in named if kinds & names and name.rpartition(".")[2].isdigit()]


def mark(
    model: PreTrainedModel,
    config: schema.Full | schema.Layers | schema.Bitfit | schema.Head,
    heads: Sequence[str] = (),
) -> None:
    """Marks what trains in `model` (on meta), where nothing does yet.

    `heads`: the task's new modules, whose training is not this one's to say. Raises ConfigError where the model has
    nothing of what is to train.
    """
    if isinstance(config, schema.Full):
        model.requires_grad_(True)
    elif isinstance(config, schema.Layers):
        every = blocks(model)
        if config.count > len(every):
            raise ConfigError(
                f"adapter.count: must be at most the model's {len(every)} blocks, got {config.count}; "
                f"use adapter.count={len(every)}"
            )
        for _, block in every[-config.count :]:
            block.requires_grad_(True)
    elif isinstance(config, schema.Bitfit):
        biases = [p for name, p in model.named_parameters() if name.rpartition(".")[2] == "bias"]
        if not biases:
            raise ConfigError(
                f"adapter.method: bitfit trains biases, and {type(model).__name__} has none; "
                "use adapter=ln_tuning for its norms, or adapter=lora"
            )
        for bias in biases:
            bias.requires_grad = True
    elif not heads:
        _mark_head(model)


def _mark_head(model: PreTrainedModel) -> None:
    head = model.get_output_embeddings()
    if head is None:
        raise ConfigError(
            f"adapter.method: head must have one, and {type(model).__name__} has "
            f"{', '.join(name for name, _ in model.named_children())}; use adapter=layers"
        )
    shared = {id(p) for m in model.modules() if m is not head for p in m.parameters(recurse=False)}
    for name, parameter in list(head.named_parameters()):
        if id(parameter) in shared:
            # Tied to the embeddings, which stay: the head parts from them, also where the model is read back.
            model.config.tie_word_embeddings = False
            parameter = nn.Parameter(parameter.detach().clone())
            setattr(head, name, parameter)
        parameter.requires_grad = True
