"""GGUF files: their config and tokenizer as a Hugging Face folder, their tensors dequantised one at a time."""

import hashlib
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from distft.errors import ConfigError
from distft.runtime.files import whole_folder

CACHE = Path("~/.cache/distft/gguf").expanduser()


@cache
def header_folder(file: Path) -> Path:
    """A folder with the config and tokenizer inside `file`, unpacked once: parsing a vocabulary takes seconds."""
    with file.open("rb") as opened:
        key = hashlib.sha256(f"{file.name} {file.stat().st_size}".encode() + opened.read(8 << 20)).hexdigest()[:16]
    folder = CACHE / f"{file.stem}-{key}"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                with whole_folder(folder, alone=True) as made:
                    AutoConfig.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(made)
                    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(made)
    return folder


def tensor_readers(file: Path, skeleton: PreTrainedModel) -> dict:
    """For each tensor of `file`, under the name `transformers` gives it, a function that reads and dequantises it.

    Raises ConfigError where the file holds tensors that no parameter of the model takes.
    """
    from gguf import GGUFReader, dequantize
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    reader = GGUFReader(file)
    architecture = reader.fields["general.architecture"].contents()
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=skeleton.config.to_dict())
    present = {tensor.name for tensor in reader.tensors} - {"rope_freqs.weight"}  # transformers computes these
    present -= {name for name in present if _block(name) >= skeleton.config.num_hidden_layers}  # a model cut short
    names = _standard_names(architecture, skeleton)
    if present - names.keys():
        names = get_gguf_hf_weights_map(skeleton, processor)
    if unknown := sorted(present - names.keys()):
        raise ConfigError(
            f"model.source: every tensor of {file} must have its parameter, "
            f"{len(unknown)} have none: {', '.join(unknown[:3])}; use the model's safetensors folder"
        )

    def read(tensor: Any) -> Tensor:
        values = dequantize(tensor.data, tensor.tensor_type)
        done = processor.process(weights=values, name=tensor.name, tensor_key_mapping=names, parsed_parameters={})
        return torch.from_numpy(done.weights.copy())

    return {names[tensor.name]: partial(read, tensor) for tensor in reader.tensors if tensor.name in present}


def _block(name: str) -> int:
    """The number of the block that a tensor is of; -1: of none."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blk" else -1


def _standard_names(architecture: str, skeleton: PreTrainedModel) -> dict[str, str]:
    """GGUF's name to ours by gguf's own table. The search in `transformers` builds that once a module, for 8 s."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next((key for key, name in MODEL_ARCH_NAMES.items() if name == architecture), None)
    if arch is None:
        return {}
    table = get_tensor_name_map(arch, skeleton.config.num_hidden_layers)
    names = {}
    for ours in skeleton.state_dict():
        path, _, kind = ours.rpartition(".")
        if (theirs := table.get_name(path)) is not None:
            names[f"{theirs}.{kind}"] = ours
    return names
