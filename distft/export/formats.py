"""The two forms of an export, made from the trained model and read back from disk."""

import shutil
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from distft.config import schema
from distft.model import load
from distft.run.tensors import TensorFolder
from distft.runtime.location import choose, locate
from distft.session.parity import ROUNDED, SAME, Parity, ParityReport
from distft.session.whole import Trained, load_plain, merge, with_plain_layers


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
    parity = Parity(rows, trained.model)
    model = merge(trained.model)
    parity.require(model, "the model merged in float32", SAME)
    for parameter in model.parameters():  # not model.to(): rotary frequencies are float32 buffers and stay so
        parameter.data = parameter.data.to(load.DTYPES[dtype])
    model.config.use_cache = True
    if model.can_generate():
        model.generation_config = _generation_config(config.model, model, tokenizer)
    model.save_pretrained(folder)
    rounded = Parity(rows, model.float())
    auto = trained.architecture.auto
    parity.report.auto_class = auto.__name__
    del model, trained
    read_back = auto.from_pretrained(folder, dtype=torch.float32, trust_remote_code=config.model.trust_remote_code)
    rounded.require(read_back, "the folder read back", SAME)
    parity.require(read_back, f"the folder read back, in {dtype}", SAME if dtype == "float32" else ROUNDED)
    return parity.report


def write_adapter(
    trained: Trained, config: schema.Config, weights: Path, folder: Path, rows: list[Tensor]
) -> ParityReport:
    """A PEFT folder for the plain base, read back on top of it. Uses up `trained`."""
    parity = Parity(rows, trained.model)
    rest_was_rounded = bool(trained.start) and config.model.dtype != "float32"
    if trained.start:
        _write_converted(trained.start, weights, folder)
    else:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(weights / name, folder / name)
    architecture = trained.architecture
    del trained
    plain = load_plain(config.model, schema.Lora(method="lora", r=1), config.seed, architecture).model
    base = with_plain_layers(plain).unload()
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
