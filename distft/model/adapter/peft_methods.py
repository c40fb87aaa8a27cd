"""Every method of PEFT: its config, its layers on meta, their starting values."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.adaption_prompt.layer import AdaptedAttention, AdaptedAttentionGPT
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper, PeftType
from torch import nn
from transformers import PreTrainedModel

from distft.config import schema
from distft.errors import ConfigError
from distft.model.adapter.all_linear import ALL, leave_out_routers, tell_what_is_left_out
from distft.model.adapter.named import require_named
from distft.model.quantize import Nf4
from distft.runtime.seed import derive_seed

ADAPTER = "default"
LOFTQ_ROUNDS = 5  # alternations of quantising and fitting, LoftQ (arXiv:2310.08659) section 3


def peft_config(config: schema.Lora | schema.Peft, heads: Sequence[str], task: TaskType) -> PeftConfig:
    """The method's own config. Raises ConfigError with what PEFT itself has against it."""
    settings: dict[str, Any] = {"task_type": task, **config.options}
    if in_full := list(dict.fromkeys([*config.modules_to_save, *heads])):
        settings["modules_to_save"] = in_full
    if config.targets is not None:
        settings["target_modules"] = config.targets
    if config.traits.rank_budget:
        settings["total_step"] = sys.maxsize  # the run's own number of steps: known when the data is
    if isinstance(config, schema.Peft):
        return _checked(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(config.method.upper())], settings)
    init: bool | str = config.init
    if config.init in ("default", "loftq"):
        init = True  # LoftQ's own start replaces it: PEFT's needs a GPU and knows no double quantisation
    settings |= {
        "r": config.r,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "init_lora_weights": init,
        "use_rslora": config.rslora,
        "use_dora": config.dora,
    }
    return _checked(LoraConfig, settings)


def _checked(kind: type[PeftConfig], settings: dict[str, Any]) -> PeftConfig:
    try:
        return kind(**settings)
    except (ValueError, TypeError, AssertionError) as error:
        raise ConfigError(
            f"adapter.options: must be what {kind.__name__} takes, got {settings} ({error}); correct them"
        ) from error


def attach(
    model: PreTrainedModel, config: schema.Lora | schema.Peft, seed: int, heads: Sequence[str], task: TaskType
) -> PeftModel:
    """`model` (on meta) under PEFT. Raises ConfigError where the targets name no module or PEFT refuses them."""
    wanted = peft_config(config, heads, task)
    require_named(model, config)
    final = getattr(wanted, "init_lora_weights", None)
    if final is not None:
        wanted.init_lora_weights = True  # what reads the base cannot read it yet
    leave_out_routers(model, wanted)
    torch.manual_seed(derive_seed(seed, "adapter"))
    shares = "_pre_injection_hook" in vars(PEFT_TYPE_TO_TUNER_MAPPING[wanted.peft_type])
    try:
        with _staying_off_meta() if shares else nullcontext():
            attached = get_peft_model(model, wanted)
    except (ValueError, TypeError, NotImplementedError) as error:
        linear = sorted({name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear)})
        got = config.targets if config.targets is not None else f"null with adapter.method={config.method}"
        raise ConfigError(
            f"adapter.targets: must name modules of the model, got {got!r} ({error}); "
            f"its linear layers are {', '.join(linear)}"
        ) from error
    if final is not None:
        wanted.init_lora_weights = final
    if config.targets == ALL:
        tell_what_is_left_out(attached, wanted)
    return attached


@contextmanager
def _staying_off_meta() -> Iterator[None]:
    """Leaves adapters where they are made. What all layers share (VeRA's projections) is made but once, at attaching,
    and PEFT would move it to where the base is by then: to meta, where its values are lost.
    """
    move = BaseTunerLayer._move_adapter_to_device_of_base_layer
    BaseTunerLayer._move_adapter_to_device_of_base_layer = lambda *args, **kwargs: None
    try:
        yield
    finally:
        BaseTunerLayer._move_adapter_to_device_of_base_layer = move


def initialise(model: PeftModel, unit: list[nn.Module], config: schema.Lora | schema.Peft, seed: int) -> None:
    """Starts again what `attach` made, where it lies in `unit`, or outside of all blocks where `unit` is the rest."""
    base = model.get_base_model()
    settings = model.peft_config[ADAPTER]
    paths = {id(module): path for path, module in base.named_modules()}
    for layer in unit:
        if isinstance(layer, BaseTunerLayer):
            path = paths[id(layer)]
            parent, _, name = path.rpartition(".")
            torch.manual_seed(derive_seed(seed, "adapter", path))
            # On a layer that has the adapter already this builds and starts its parameters again.
            # PEFT's own way knows no layer of fused experts that is wrapped already.
            if isinstance(layer, TrainableTokensLayer) and settings.peft_type == PeftType.LORA:
                layer.update_layer(ADAPTER, tied_adapter=layer.tied_adapter, token_indices=layer.token_indices[ADAPTER])
            elif settings.peft_type == PeftType.LORA:
                layer.update_layer(
                    ADAPTER, layer.r[ADAPTER], lora_alpha=layer.lora_alpha[ADAPTER], config=settings, target_name=path
                )
            else:
                model.base_model._create_and_replace(
                    settings, ADAPTER, layer, name, base.get_submodule(parent), current_key=path
                )
            if config.traits.fits_quantisation:
                _start_loftq(layer)
        elif isinstance(layer, ModulesToSaveWrapper):
            layer.modules_to_save[ADAPTER] = deepcopy(layer.original_module).requires_grad_()
        elif isinstance(layer, AdaptedAttention | AdaptedAttentionGPT):
            _start_adaption_prompt(layer, derive_seed(seed, "adapter", paths[id(layer)]))
        else:
            continue
        _to_float32(layer)
    if not any(module is base for module in unit):
        return
    if settings.is_prompt_learning:
        torch.manual_seed(derive_seed(seed, "adapter", "prompt_encoder"))
        model._setup_prompt_encoder(ADAPTER)
        _to_float32(model.prompt_encoder)
    else:
        _to_device_of_base(model)


def _to_device_of_base(model: PeftModel) -> None:
    """Brings what all layers share, which lies in the tuner beside the model, to where the model is."""
    device = model.get_input_embeddings().weight.device
    for name, part in model.base_model.named_children():
        if name != "model":
            part.to(device)


def _to_float32(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _start_adaption_prompt(layer: Any, seed: int) -> None:
    """Standard normal prompts behind a gate that is shut: LLaMA-Adapter (arXiv:2303.16199)."""
    torch.manual_seed(seed)
    device = next(p.device for p in layer.model.parameters())
    layer.adaption_prompt = nn.Parameter(torch.randn(layer.adaption_prompt.shape).to(device))
    layer.adaption_gate = nn.Parameter(torch.zeros(1, device=device))


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
