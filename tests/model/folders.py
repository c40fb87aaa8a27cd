"""Small models in folders, as our loader and as `transformers` read them."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from distft.config import schema
from distft.model.load import load

SMALL = {
    "vocab_size": 131,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
IDS = torch.arange(3, 23)[None]


def save(folder: Path, family: str = "llama", seed: int = 0, **changes) -> Path:
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**SMALL, "tie_word_embeddings": False, **changes})
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def base(folder: Path, **changes) -> torch.nn.Module:
    model = schema.Model(
        source=str(folder), **{"dtype": "float32", "compute_dtype": "float32", "attention": "sdpa", **changes}
    )
    return load(model, None, seed=0, device=torch.device("cpu"), shard=lambda block: None).model.eval()


def by_transformers(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Adds tensors to a folder's one file; None takes one out."""
    file = folder / "model.safetensors"
    changed = {**load_file(file), **tensors}
    save_file({name: t for name, t in changed.items() if t is not None}, file, metadata={"format": "pt"})
