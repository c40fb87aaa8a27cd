"""Which model is made of a base: its class, entries of its config, and the modules that no base has."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import init_empty_weights
from peft import TaskType
from transformers import AutoModelForCausalLM, PreTrainedModel

from distft.config import schema


@dataclass(frozen=True)
class Architecture:
    """Which model is made of the base, as its task wants it."""

    auto: Any = AutoModelForCausalLM
    """A class of `transformers` with `from_config` and `from_pretrained`."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Entries of the model's config, such as `id2label`."""
    heads: tuple[str, ...] = ()
    """Paths of modules that no base has: drawn from the seed, trained in full, saved with the adapter."""
    finish: Callable[[PreTrainedModel], None] | None = None
    """Changes the skeleton (on meta) where `auto` knows no such head."""
    attention: str | None = None
    """What `model.attention=auto` means for it; null: what is best on the device."""
    peft_task: TaskType = TaskType.CAUSAL_LM
    teacher: schema.Model | None = None
    """A second causal model, frozen, that is loaded beside it."""

    def skeleton(self, config: Any, attention: str | None, trust_remote_code: bool = False) -> PreTrainedModel:
        """The model without weights, on meta; without an `attention` by the one that `transformers` takes for it."""
        for name, value in self.settings.items():
            setattr(config, name, value)
        with init_empty_weights(include_buffers=False):
            model: PreTrainedModel = self.auto.from_config(
                config, dtype=torch.float32, attn_implementation=attention, trust_remote_code=trust_remote_code
            )
            if self.finish is not None:
                self.finish(model)
        return model

    def new_modules(self, model: PreTrainedModel) -> list[str]:
        """Those of `heads` that this model has."""
        names = dict(model.named_modules())
        return [head for head in self.heads if head in names]


CAUSAL = Architecture()
