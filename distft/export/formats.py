"""The two forms of an export, made from the trained model and read back from disk."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from distft.config import schema
from distft.errors import ConfigError
from distft.model import load
from distft.model.adapter import attach as adapter
from distft.model.architecture import Architecture
from distft.model.quantize import StoredLinear
from distft.model.tokenizer import load_tokenizer
from distft.run.checkpoints import TensorFolder
from distft.run.trained import check_same_base, facts_beside, open_weights
from distft.runtime.location import choose, locate
from distft.session.parity import ROUNDED, SAME, Agreement, Report
from distft.task import module as tasks


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
    loaded = _load(config.model, config.adapter, config.seed, architecture)
    check_same_base(run, loaded.identity)
    module = task.module(loaded, facts)
    parameters = module.trainable()
    tensors = open_weights(weights, module.weights_file, parameters, module.beside().names)
    changes = adapter.changes_base(config.adapter)
    start = {name: p.detach().clone() for name, p in parameters.items()} if changes else {}
    for name, parameter in parameters.items():
        value = tensors.read(name)
        if value.shape != parameter.shape:
            raise ConfigError(
                f"checkpoint: {name} must be {list(parameter.shape)}, got {list(value.shape)} in {weights}"
            )
        parameter.copy_(value)
    return Trained(loaded.model, start, architecture)


def write_merged(
    trained: Trained,
    config: schema.Config,
    dtype: str,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    rows: list[Tensor],
) -> Report:
    """A plain Hugging Face folder. Merged in float32 into the weights that the adapter was trained on, then rounded.

    Three comparisons, so that rounding cannot hide a fault: the merged model is the trained one, the file is the merged
    model rounded, and rounding itself moves little. Uses up `trained`.
    """
    agreement = Agreement(rows, trained.model)
    model = merge(trained.model)
    agreement.require(model, "the model merged in float32", SAME)
    for parameter in model.parameters():  # not model.to(): rotary frequencies are float32 buffers and stay so
        parameter.data = parameter.data.to(load.DTYPES[dtype])
    model.config.use_cache = True
    if model.can_generate():
        model.generation_config = _generation_config(config.model, model, tokenizer)
    model.save_pretrained(folder)
    rounded = Agreement(rows, model.float())
    auto = trained.architecture.auto
    agreement.report.auto_class = auto.__name__
    del model, trained
    read_back = auto.from_pretrained(folder, dtype=torch.float32, trust_remote_code=config.model.trust_remote_code)
    rounded.require(read_back, "the folder read back", SAME)
    agreement.require(read_back, f"the folder read back, in {dtype}", SAME if dtype == "float32" else ROUNDED)
    return agreement.report


def write_adapter(trained: Trained, config: schema.Config, weights: Path, folder: Path, rows: list[Tensor]) -> Report:
    """A PEFT folder for the plain base, read back on top of it. Uses up `trained`."""
    agreement = Agreement(rows, trained.model)
    rest_was_rounded = bool(trained.start) and config.model.dtype != "float32"
    if trained.start:
        _write_converted(trained.start, weights, folder)
    else:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(weights / name, folder / name)
    architecture = trained.architecture
    del trained
    plain = _load(config.model, schema.Lora(method="lora", r=1), config.seed, architecture).model
    base = _with_plain_layers(plain).unload()
    read_back = PeftModel.from_pretrained(base, folder)
    agreement.require(read_back, "the folder read back", ROUNDED if rest_was_rounded else SAME)
    return agreement.report


@torch.no_grad()
def merge(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The plain model, on the CPU in float32. NF4 layers are decoded first: the adapter was trained on those values."""
    model = _with_plain_layers(model)
    return model.merge_and_unload(safe_merge=True) if isinstance(model, PeftModel) else model


def _with_plain_layers(model: nn.Module) -> Any:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, StoredLinear):
                setattr(parent, name, child.to_linear(torch.float32).cpu())
    return model.float().cpu()


def _load(model: schema.Model, method: schema.AnyAdapter, seed: int, architecture: Architecture) -> load.Loaded:
    plain = model.model_copy(update={"compute_dtype": "float32", "attention": "sdpa", "gradient_checkpointing": "none"})
    # 4-bit codes are made anew: where they were made, a GPU, its kernels make the same ones.
    on_gpu = model.quantization != "none" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    return load.load(plain, method, seed=seed, device=device, shard=lambda block: None, architecture=architecture)


def _write_converted(start: dict[str, Tensor], weights: Path, folder: Path) -> None:
    """An adapter whose start was taken out of the base (W = W' + s B0 A0) as one of twice the rank on W itself:

    W' + s B A = W + s [B, -B0] [A; A0].
    """
    tensors, trained = {}, TensorFolder(weights, "adapter_model")
    for name in trained.names:
        value = trained.read(name)
        if "lora_A" in name:
            value = torch.cat([value, start[name].cpu()])
        elif "lora_B" in name:
            value = torch.cat([value, -start[name].cpu()], dim=1)
        tensors[name] = value.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = LoraConfig.from_pretrained(weights)
    settings.lora_alpha *= 2**0.5 if settings.use_rslora else 2
    settings.r *= 2
    settings.init_lora_weights = True
    settings.save_pretrained(folder)


def _generation_config(
    model: schema.Model, merged: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> GenerationConfig:
    """The base's own, where it has one; replies also end at the token that training ended them with."""
    settings = GenerationConfig()
    if model.random_init is None:
        path = locate(choose(model.source))
        try:
            settings = GenerationConfig.from_pretrained(str(path or choose(model.source)), revision=model.revision)
        except OSError:  # it has none, as a GGUF file
            settings = GenerationConfig.from_model_config(merged.config)
    known = settings.eos_token_id
    ends = [] if known is None else known if isinstance(known, list) else [known]
    settings.eos_token_id = list(dict.fromkeys([*ends, tokenizer.eos_token_id]))
    settings.pad_token_id = tokenizer.pad_token_id
    if settings.bos_token_id is None:
        settings.bos_token_id = tokenizer.bos_token_id
    # Some published configs set a temperature without sampling, which is refused on saving.
    if settings.temperature not in (None, 1.0) or settings.top_p not in (None, 1.0):
        settings.do_sample = True
    return settings
