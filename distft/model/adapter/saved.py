"""What of a model lies in a checkpoint, by which name, and the small files that make it loadable."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from distft.config import schema
from distft.model.adapter.peft_methods import ADAPTER

FACTS = "task.json"
"""File beside the weights of every checkpoint: what the task's reader learnt of the data."""
PROMPT = "prompt_embeddings"  # PEFT's name for what a prompt encoder gives: all that it reads of one


@dataclass(frozen=True)
class Beside:
    """Tensors that do not train and lie in the weights' file all the same, because PEFT looks for them there."""

    constant: dict[str, Tensor] = field(default_factory=dict)
    derived: tuple[str, ...] = ()
    derive: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda trained: {}

    @property
    def names(self) -> set[str]:
        return {*self.constant, *self.derived}

    def of(self, trained: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors, on the host. `trained`: what trains, full, by name."""
        return {**self.constant, **self.derive(trained)}


def weights_file(model: PreTrainedModel | PeftModel) -> str:
    """Stem of the file that holds what trains, as its readers expect it."""
    if isinstance(model, PeftModel):
        return "adapter_model"
    return "model" if all(p.requires_grad for p in model.parameters()) else "trained"


def trainable(model: PreTrainedModel | PeftModel) -> dict[str, nn.Parameter]:
    """What trains, by the name it has in a checkpoint: PEFT's own, or the model's."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not isinstance(model, PeftModel):
        return parameters
    if model.peft_config[ADAPTER].is_prompt_learning:
        renamed = {name.removeprefix(f"prompt_encoder.{ADAPTER}."): p for name, p in parameters.items()}
        if list(renamed) == ["embedding.weight"]:  # no encoder: it is itself what PEFT reads
            return {PROMPT: renamed["embedding.weight"]}
        return {f"prompt_encoder.{name}": p for name, p in renamed.items()}
    return {name: p for name, p in _by_peft(model).items() if isinstance(p, nn.Parameter) and p.requires_grad}


def beside(model: PreTrainedModel | PeftModel) -> Beside:
    """What lies beside the trained tensors of `model`, whose adapter is real and not sharded yet."""
    if not isinstance(model, PeftModel):
        return Beside()
    if not model.peft_config[ADAPTER].is_prompt_learning:
        rest = {name: t for name, t in _by_peft(model).items() if not t.requires_grad}
        return Beside({name: t.detach().cpu().contiguous() for name, t in rest.items()})
    if PROMPT in trainable(model):
        return Beside()
    encoder = model.prompt_encoder[ADAPTER]
    tokens = model.prompt_tokens[ADAPTER][: model.peft_config[ADAPTER].num_virtual_tokens].unsqueeze(0)
    # On meta now, so that no rank keeps it: the values are those of each checkpoint.
    on_host = _copy_on_meta(encoder)

    @torch.no_grad()
    def encode(trained: dict[str, Tensor]) -> dict[str, Tensor]:
        values = {name.removeprefix("prompt_encoder."): tensor for name, tensor in trained.items()}
        return {PROMPT: functional_call(on_host, values, (tokens,))[0].contiguous()}

    return Beside(derived=(PROMPT,), derive=encode)


def describe(
    model: PreTrainedModel | PeftModel, config: schema.AnyAdapter, source: str, facts: dict[str, Any]
) -> dict[str, str]:
    """The small files that make a folder of weights loadable, by name.

    `source`: where the base is from; `facts`: what the task learnt of the data, and what the model's head follows.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    files = {FACTS: json.dumps(facts, ensure_ascii=False, indent=2)} if facts else {}
    if facts or weights_file(model) == "model":
        files["config.json"] = base.config.to_json_string()
    if isinstance(model, PeftModel):
        settings = model.peft_config[ADAPTER].to_dict()
        settings |= {"inference_mode": True, "base_model_name_or_path": source}
        files["adapter_config.json"] = json.dumps(settings, indent=2, default=_plain, sort_keys=True)
    elif weights_file(model) == "trained":
        settings = {"adapter": config.model_dump(mode="json"), "base_model_name_or_path": source}
        files["trained.json"] = json.dumps(settings, indent=2)
    return files


def _by_peft(model: PeftModel) -> dict[str, Tensor]:
    """Every tensor that PEFT saves, by PEFT's name."""
    # Under every name: what all layers share has one at each, and PEFT knows it by one of them.
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    # PEFT knows its names; tensors of distinct sizes on meta tell which became which.
    marks = {name: torch.empty(i, device="meta") for i, name in enumerate(tensors)}
    renamed = get_peft_model_state_dict(model, state_dict=marks, adapter_name=ADAPTER, save_embedding_layers=False)
    in_order = list(tensors.values())
    saved: dict[int, tuple[str, Tensor]] = {}
    for name, mark in renamed.items():  # a tied head has the embeddings' own: one name is enough, to PEFT too
        saved.setdefault(id(in_order[mark.numel()]), (name, in_order[mark.numel()]))
    trains = {id(p) for p in model.parameters() if p.requires_grad}
    assert trains <= saved.keys(), "PEFT leaves out parameters that train"
    return dict(saved.values())


def _copy_on_meta(module: nn.Module) -> nn.Module:
    from copy import deepcopy

    return deepcopy(module).to("meta").eval()


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)
