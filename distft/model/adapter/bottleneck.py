"""Bottleneck adapters: Houlsby et al. 2019 (arXiv:1902.00751), and in parallel He et al. 2022 (arXiv:2110.04366).

    serial:    y = f(x) + scale * up(act(down(f(x))))
    parallel:  y = f(x) + scale * up(act(down(x)))

around a sublayer f. `up` starts at zero, so that the model starts as its base. The activation stands between them, so
neither form merges into a linear layer.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from distft.config import schema
from distft.errors import ConfigError
from distft.model.adapter.named import require_suffixes
from distft.model.adapter.own_weights import blocks
from distft.runtime.seed import derive_seed

CHILD = "bottleneck"


class Bottleneck(nn.Module):
    """`scale * up(act(down(x)))`, in float32 weights."""

    def __init__(self, width: int, config: schema.Bottleneck):
        super().__init__()
        self.scale = config.scale
        self.parallel = config.placement == "parallel"
        self.down = nn.Linear(width, config.size)
        self.up = nn.Linear(config.size, width)
        self.activation = ACT2FN[config.activation]
        self.dropout = nn.Dropout(config.dropout)

    def reset_parameters(self) -> None:
        """Draws `down` as `nn.Linear` does; `up` is zero."""
        self.down.reset_parameters()
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(self.down(x.to(self.down.weight.dtype)))
        return (self.scale * self.up(self.dropout(hidden))).to(x.dtype)


def attach(model: PreTrainedModel, config: schema.Bottleneck) -> None:
    """Puts an adapter around each target in the blocks of `model`, as its child `bottleneck`.

    Raises ConfigError where the targets name nothing in the blocks.
    """
    width = model.config.get_text_config().hidden_size
    found = [
        module
        for path, block in blocks(model)
        for name, module in block.named_modules()
        if name and any(name == target or name.endswith(f".{target}") for target in config.targets)
    ]
    if not found:
        first = blocks(model)[0][1]
        names = [name for name, module in first.named_modules() if name and list(module.parameters(recurse=True))]
        raise ConfigError(
            f"adapter.targets: must name sublayers of the blocks, got {config.targets}; a block has {', '.join(names)}"
        )
    within = [name for _, block in blocks(model) for name, _ in block.named_modules() if name]
    require_suffixes(config.targets, within, "adapter.targets")
    device = next(model.parameters()).device
    for module in found:
        with torch.device(device):
            adapter = Bottleneck(width, config)
        module.add_module(CHILD, adapter)
        module.register_forward_hook(_around, with_kwargs=True)


def _around(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    adapter: Any = getattr(module, CHILD)
    out = output[0] if isinstance(output, tuple) else output
    inputs = (args[0] if args else kwargs["hidden_states"]) if adapter.parallel else out
    out = out + adapter(inputs)
    return (out, *output[1:]) if isinstance(output, tuple) else out


def initialise(model: nn.Module, unit: list[nn.Module], seed: int) -> None:
    """Makes the adapters in `unit` real, on the device of what is around them."""
    paths = {id(module): path for path, module in model.named_modules()}
    for module in unit:
        if isinstance(module, Bottleneck):
            path = paths[id(module)]
            around = model.get_submodule(path.rpartition(".")[0])
            device = next(p.device for p in around.parameters() if not p.is_meta)
            torch.manual_seed(derive_seed(seed, "adapter", path))
            module.to_empty(device="cpu")
            module.reset_parameters()
            module.to(device)


def load(model: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """Puts the adapters that a run saved in `folder` (`adapter/`, or a checkpoint) into their plain base `model`.

    Raises KeyError or RuntimeError where the folder does not fit.
    """
    config = schema.Bottleneck.model_validate(
        json.loads((Path(folder) / "trained.json").read_text(encoding="utf-8"))["adapter"]
    )
    attach(model, config)
    outcome = model.load_state_dict(load_file(Path(folder) / "trained.safetensors"), strict=False)
    missing = [name for name in outcome.missing_keys if f".{CHILD}." in name]
    if missing or outcome.unexpected_keys:
        raise RuntimeError(f"{folder} does not fit the model: {[*missing, *outcome.unexpected_keys][:3]}")
    return model
