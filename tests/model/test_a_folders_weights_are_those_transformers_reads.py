"""Which files, which tensors of them: what `transformers` reads is what trains, and what nobody would read is named."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from distft.config import schema
from distft.errors import ConfigError
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
    model = schema.Model(source=str(folder), **{"dtype": "float32", "compute_dtype": "float32", **changes})
    return load(model, None, seed=0, device=torch.device("cpu"), shard=lambda block: None).model.eval()


def by_transformers(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Adds tensors to a folder's one file; None takes one out."""
    file = folder / "model.safetensors"
    changed = {**load_file(file), **tensors}
    save_file({name: t for name, t in changed.items() if t is not None}, file, metadata={"format": "pt"})


@torch.no_grad()
def assert_same_logits(folder: Path) -> None:
    torch.testing.assert_close(base(folder)(IDS).logits, by_transformers(folder)(IDS).logits)


@pytest.mark.parametrize("shards_left", [True, False])
def test_one_whole_file_comes_before_an_older_index(tmp_path, shards_left):
    save(tmp_path)
    by_transformers(tmp_path).save_pretrained(tmp_path / "older", max_shard_size="20KB")
    save(tmp_path, seed=1)
    older = sorted((tmp_path / "older").glob("model*"))
    assert len(older) > 2
    for file in older if shards_left else [file for file in older if file.suffix == ".json"]:
        file.rename(tmp_path / file.name)
    assert_same_logits(tmp_path)


def test_shards_that_the_index_names_must_be_there(tmp_path):
    save(tmp_path)
    by_transformers(tmp_path).save_pretrained(tmp_path / "m", max_shard_size="20KB")
    gone = sorted((tmp_path / "m").glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(ConfigError, match=f"missing {gone.name}"):
        base(tmp_path / "m")
