"""A trained model whole, in one process and without an engine: what is exported, merged and put to other benchmarks."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from distft.config import schema
from distft.errors import ConfigError
from distft.model import load
from distft.model.adapter import saved
from distft.model.architecture import Architecture
from distft.model.own_attention import own_implementation
from distft.model.quantize import StoredLinear
from distft.model.tokenizer import load_tokenizer
from distft.run.compatible import check_same_base
from distft.run.tensors import open_weights
from distft.run.weights import facts_beside
from distft.task import build as tasks


@dataclass
class Trained:
    """A run's model with its trained weights in place, and what those were before the first step."""

    model: PreTrainedModel | PeftModel
    start: dict[str, Tensor]
    architecture: Architecture


def tokenizer_of(run: Path, config: schema.Config) -> PreTrainedTokenizerFast:
    """The run's own copy, which has the chat template it trained with; else the base's."""
    if (run / "adapter" / "tokenizer.json").exists():
        return AutoTokenizer.from_pretrained(run / "adapter")
    return load_tokenizer(config.model, config.data.chat_template)


@torch.no_grad()
def load_trained(run: Path, config: schema.Config, weights: Path) -> Trained:
    """The model as it was trained, computing in float32: NF4 codes and all. Raises ConfigError."""
    task, facts = tasks.build(config.task), facts_beside(weights) or {}
    architecture = replace(task.architecture(facts), teacher=None)
    if architecture.finish is not None:
        raise ConfigError(
            f"task: must be one whose model a class of transformers loads, got {config.task.name} with its own head; "
            f"take {weights}, a PEFT adapter with the head in it"
        )
    loaded = load_plain(config.model, config.adapter, config.seed, architecture)
    check_same_base(run, loaded.identity)
    parameters = saved.trainable(loaded.model)
    tensors = open_weights(weights, saved.weights_file(loaded.model), parameters, saved.beside(loaded.model).names)
    changes = config.adapter.traits.changes_base
    start = {name: p.detach().clone() for name, p in parameters.items()} if changes else {}
    for name, parameter in parameters.items():
        value = tensors.read(name)
        if value.shape != parameter.shape:
            raise ConfigError(
                f"checkpoint: {name} must be {list(parameter.shape)}, got {list(value.shape)} in {weights}"
            )
        parameter.copy_(value)
    return Trained(loaded.model, start, architecture)


@torch.no_grad()
def merge(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The plain model, on the CPU in float32. NF4 layers are decoded first: the adapter was trained on those values."""
    model = with_plain_layers(model)
    if not isinstance(model, PeftModel):
        return model
    _part_from_tied(model)
    return model.merge_and_unload(safe_merge=True)


def _part_from_tied(model: PeftModel) -> None:
    """Gives adapted layers that share a weight one of their own: what is merged into a head is not the embeddings'."""
    users = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    for layer in model.modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        base = layer.get_base_layer()
        for name, weight in list(base.named_parameters(recurse=False)):
            if users[id(weight)] > 1:
                users[id(weight)] -= 1
                setattr(base, name, nn.Parameter(weight.detach().clone(), requires_grad=False))
                config = model.get_base_model().config
                config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False


def with_plain_layers(model: nn.Module) -> Any:
    """`model` on the CPU in float32, its NF4 layers decoded in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, StoredLinear):
                setattr(parent, name, child.to_linear(torch.float32).cpu())
    return model.float().cpu()


def load_plain(
    model: schema.Model, method: schema.AnyAdapter | None, seed: int, architecture: Architecture
) -> load.Loaded:
    """The base in float32, NF4 codes and all; with `method` attached where there is one. Raises ConfigError."""
    skeleton = architecture.skeleton(load.plain_config(model), "eager", model.trust_remote_code)
    own = {"attention": own_implementation(skeleton)}
    plain = model.model_copy(update={"compute_dtype": "float32", "gradient_checkpointing": "none", **own})
    # 4-bit codes are made anew: where they were made, a GPU, its kernels make the same ones.
    on_gpu = model.quantization != "none" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    return load.load(plain, method, seed=seed, device=device, shard=lambda block: None, architecture=architecture)
