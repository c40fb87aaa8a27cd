"""The two forms of an export, made from the trained model and read back from disk."""

import shutil
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from distft.config import schema
from distft.export.generation import generation_config
from distft.export.padding import padding_token
from distft.model import load
from distft.model.own_attention import own_implementation
from distft.run.tensors import TensorFolder
from distft.session.parity import ROUNDED, SAME, Parity, ParityReport
from distft.session.whole import Trained, load_plain, merge, with_plain_layers
from distft.task.reply_end import reply_ends


def write_merged(
    trained: Trained,
    config: schema.Config,
    dtype: str,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    rows: list[Tensor],
) -> ParityReport:
    """A plain Hugging Face folder. Merged in float32 into the weights that the adapter was trained on, then rounded.

    Three comparisons, so that rounding cannot hide a fault: the merged model is the trained one, the file is the merged
    model rounded, and rounding itself moves little. Uses up `trained`.
    """
    base = trained.model.get_base_model() if isinstance(trained.model, PeftModel) else trained.model
    settings = None
    if base.can_generate():
        settings = generation_config(config.model, tokenizer, reply_ends(tokenizer))
    parity = Parity(rows, trained.model)
    model = merge(trained.model)
    parity.require(model, "the model merged in float32", SAME)
    for parameter in model.parameters():  # not model.to(): rotary frequencies are float32 buffers and stay so
        parameter.data = parameter.data.to(load.DTYPES[dtype])
    model.config.use_cache = True
    model.config.pad_token_id = padding_token(model, tokenizer, rows)
    if settings is not None:
        model.generation_config = settings
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rounded = Parity(rows, model.float())
    auto, attention = trained.architecture.auto, own_implementation(model)
    parity.report.auto_class = auto.__name__
    del model, trained
    read_back = auto.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation=attention,
        trust_remote_code=config.model.trust_remote_code,
    )
    rounded.require(read_back, "the folder read back", SAME)
    parity.require(read_back, f"the folder read back, in {dtype}", SAME if dtype == "float32" else ROUNDED)
    parity.require_padded(read_back)
    return parity.report


def write_adapter(
    trained: Trained,
    config: schema.Config,
    weights: Path,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    rows: list[Tensor],
) -> ParityReport:
    """A PEFT folder for the plain base, read back on top of it. Uses up `trained`."""
    tokenizer.save_pretrained(folder)
    parity = Parity(rows, trained.model)
    rest_was_rounded = bool(trained.start) and config.model.dtype != "float32"
    if trained.start:
        _write_converted(trained.start, weights, folder)
    else:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(weights / name, folder / name)
    architecture = trained.architecture
    del trained
    base = with_plain_layers(load_plain(config.model, None, config.seed, architecture).model)
    read_back = PeftModel.from_pretrained(base, folder)
    parity.require(read_back, "the folder read back", ROUNDED if rest_was_rounded else SAME)
    return parity.report


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
