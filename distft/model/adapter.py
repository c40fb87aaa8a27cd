"""What trains: adapters of PEFT put on the base, or the base itself.

Attaching happens on the meta device, so it costs nothing; starting values come later, block by block, when a block's
weights are in memory: some initialisations (PiSSA, OLoRA, LoftQ) change them, DoRA's magnitudes read what is stored.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from distft.config.schema import Full, Lora
from distft.errors import ConfigError
from distft.model.quantize import Nf4
from distft.runtime.seed import derive_seed

ADAPTER = "default"
LOFTQ_ROUNDS = 5  # alternations of quantising and fitting, LoftQ (arXiv:2310.08659) section 3


def changes_base(config: Lora | Full | None) -> bool:
    """Whether starting the adapter takes a part of the base's weights away: before they are quantised, in float32."""
    return isinstance(config, Lora) and config.init in ("pissa", "olora", "loftq")


def peft_config(config: Lora, heads: Sequence[str], task: TaskType) -> PeftConfig:
    init: bool | str = config.init
    if config.init in ("default", "loftq"):
        init = True  # LoftQ's own start replaces it: PEFT's needs a GPU and knows no double quantisation
    return LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.targets,
        init_lora_weights=init,
        use_rslora=config.rslora,
        use_dora=config.dora,
        modules_to_save=list(dict.fromkeys([*config.modules_to_save, *heads])) or None,
        task_type=task,
    )


def attach(
    model: PreTrainedModel,
    config: Lora | Full | None,
    heads: Sequence[str] = (),
    task: TaskType = TaskType.CAUSAL_LM,
) -> PreTrainedModel | PeftModel:
    """`model` (on meta) with what trains marked by `requires_grad`: the adapter, and the new modules `heads` in full.

    Without a `config` nothing trains. Raises ConfigError where `adapter.targets` names no module.
    """
    model.requires_grad_(isinstance(config, Full))
    if config is None or isinstance(config, Full):
        return model
    wanted = peft_config(config, heads, task)
    final = wanted.init_lora_weights
    wanted.init_lora_weights = True  # what reads the base cannot read it yet
    try:
        attached = get_peft_model(model, wanted)
    except ValueError as error:
        linear = sorted({name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear)})
        raise ConfigError(
            f"adapter.targets: must name modules of the model, got {config.targets!r} ({error}); "
            f"its linear layers are {', '.join(linear)}"
        ) from error
    wanted.init_lora_weights = final
    return attached


def initialise(model: nn.Module, unit: list[nn.Module], config: Lora | Full | None, seed: int) -> None:
    """Starting values for the adapters among the modules `unit` of `model`, whose base weights are real by now.

    They depend on (seed, layer name) alone, so every engine and world size starts alike.
    """
    if config is None or isinstance(config, Full):
        return
    assert isinstance(model, PeftModel)
    settings = model.peft_config[ADAPTER]
    paths = {id(module): path for path, module in model.get_base_model().named_modules()}
    for layer in unit:
        if isinstance(layer, BaseTunerLayer):
            path = paths[id(layer)]
            torch.manual_seed(derive_seed(seed, "adapter", path))
            # On a layer that has the adapter already this builds and starts its parameters again.
            layer.update_layer(
                ADAPTER, layer.r[ADAPTER], lora_alpha=layer.lora_alpha[ADAPTER], config=settings, target_name=path
            )
            if config.init == "loftq":
                _start_loftq(layer)
        elif isinstance(layer, ModulesToSaveWrapper):
            layer.modules_to_save[ADAPTER] = deepcopy(layer.original_module).requires_grad_()
        else:
            continue
        for parameter in layer.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()


@torch.no_grad()
def _start_loftq(layer: Any) -> None:
    """W ~ Q + scaling * B A, alternately: Q = nf4(W - scaling * B A), then scaling * B A = the best fit of W - Q."""
    base, scaling, r = layer.get_base_layer(), layer.scaling[ADAPTER], layer.r[ADAPTER]
    weight = base.weight.float()
    nf4 = Nf4(weight.shape, torch.float32)
    residual = weight
    for _ in range(LOFTQ_ROUNDS):
        u, s, v = torch.linalg.svd(weight - nf4.decode(nf4.encode(residual)), full_matrices=False)
        root = s[:r].sqrt()
        b, a = u[:, :r] * root, root[:, None] * v[:r]
        residual = weight - b @ a
    layer.lora_A[ADAPTER].weight.data = a.contiguous()
    layer.lora_B[ADAPTER].weight.data = (b / scaling).contiguous()
    base.weight.data = residual


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
