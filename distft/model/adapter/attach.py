"""What trains: adapters put on the base, or a part of the base itself.

Attaching happens on the meta device, so it costs nothing; starting values come later, block by block, when a block's
weights are in memory: some initialisations (PiSSA, OLoRA, LoftQ) change them, DoRA's magnitudes read what is stored.
"""

from collections.abc import Sequence

from peft import PeftModel, TaskType
from torch import nn
from transformers import PreTrainedModel

from distft.config import schema
from distft.model.adapter import bottleneck, own_weights, peft_methods
from distft.model.adapter.peft_methods import ADAPTER


def attach(
    model: PreTrainedModel,
    config: schema.AnyAdapter | None,
    *,
    seed: int,
    heads: Sequence[str] = (),
    task: TaskType = TaskType.CAUSAL_LM,
) -> PreTrainedModel | PeftModel:
    """`model` (on meta) with what trains marked by `requires_grad`: the adapter, and the new modules `heads` in full.

    Without a `config` nothing trains. Raises ConfigError where the model has nothing of what is to train.
    """
    model.requires_grad_(False)
    if config is None:
        return model
    if isinstance(config, schema.Lora | schema.Peft):
        return peft_methods.attach(model, config, seed, heads, task)
    if isinstance(config, schema.Bottleneck):
        bottleneck.attach(model, config)
    else:
        own_weights.mark(model, config, heads)
    for head in heads:
        model.get_submodule(head).requires_grad_(True)
    return model


def initialise(model: nn.Module, unit: list[nn.Module], config: schema.AnyAdapter | None, seed: int) -> None:
    """Starting values for the adapters among the modules `unit` of `model`, whose base weights are real by now.

    They depend on (seed, layer name) alone, so every engine and world size starts alike.
    """
    if isinstance(config, schema.Lora | schema.Peft):
        assert isinstance(model, PeftModel)
        peft_methods.initialise(model, unit, config, seed)
    elif isinstance(config, schema.Bottleneck):
        bottleneck.initialise(model, unit, seed)


def describe_trainable(model: nn.Module) -> str:
    """What trains in `model` (on meta), in a sentence."""
    trains = {name: p for name, p in model.named_parameters() if p.requires_grad}
    numbers, total = sum(p.numel() for p in trains.values()), sum(p.numel() for p in model.parameters())
    kinds: dict[str, int] = {}
    for name in trains:
        parts = [part for part in name.removesuffix(".weight").split(".") if not part.isdigit() and part != ADAPTER]
        kind = ".".join(parts[-2:])
        kinds[kind] = kinds.get(kind, 0) + 1
    listed = [f"{count} {kind}" for kind, count in kinds.items()]
    more = f" and {len(listed) - 14} more kinds" if len(listed) > 14 else ""
    return (
        f"{numbers:,} of {total:,} parameters ({100 * numbers / total:.2f}%), float32, in {len(trains)} tensors: "
        + ", ".join(listed[:14])
        + more
    )
