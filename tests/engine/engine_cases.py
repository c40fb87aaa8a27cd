"""What the engine tests run on every rank: a tiny model, a made-up corpus of ragged documents, one engine."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from distft.config import schema
from distft.data import pack
from distft.data.corpus import Corpus, Counts
from distft.data.document import IGNORED
from distft.data.loader import Loader
from distft.engine.build import build
from distft.engine.seam import Engine
from distft.model.load import load
from distft.runtime.group import Group
from distft.task.causal_lm import CausalLM

SHAPE = {
    "model_type": "llama",
    "vocab_size": 307,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}


def config(engine: dict[str, Any], **changes: Any) -> schema.Config:
    """A run's config with the tests' defaults; `changes` are by section, or whole top-level keys."""
    sections: dict[str, Any] = {
        "name": "test",
        "steps": 4,
        "model": {"source": "none", "random_init": SHAPE, "dtype": "float32"},
        "adapter": {"method": "lora", "r": 4, "alpha": 8},
        "engine": engine,
        "data": {"train": "none", "max_length": 64, "global_batch": 8, "micro_batch": 2},
        "optim": {"name": "adamw", "lr": 1e-2, "warmup": 0, "schedule": "constant"},
        "checkpoint": {},
        "evaluation": {},
        "tracking": {"name": "none"},
        "cluster": {"name": "local"},
    }
    for key, value in changes.items():
        sections[key] = {**sections[key], **value} if isinstance(value, dict) and key in sections else value
    return schema.Config.model_validate(sections)


def corpus(num_documents: int = 60, vocabulary: int = 307) -> Corpus:
    """Documents of 2 to 40 random tokens, about half of them supervised."""
    draw = np.random.Generator(np.random.PCG64(1))
    lengths = draw.integers(2, 40, num_documents)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    ids = draw.integers(0, vocabulary, lengths.sum()).astype(np.int32)
    supervised = draw.random(lengths.sum()) < 0.5
    supervised[starts + 1] = True
    supervised[starts] = False
    targets = np.add.reduceat(supervised.astype(np.int64), starts)
    return Corpus(Counts(num_documents, 0, 0, {}), "made-up", lengths, targets, starts, ids, supervised)


def loader(config: schema.Config, group: Group, documents: Corpus | None = None) -> Loader:
    documents = documents or corpus()
    rows = pack.plan(documents.lengths, config.data.max_length, config.data.packing)
    return Loader(
        documents,
        rows,
        data=config.data,
        seed=config.seed,
        steps=config.steps,
        epochs=config.epochs,
        global_rank=group.ranks.global_rank,
        world_size=group.ranks.world_size,
        pad_id=0,
    )


def start(config: schema.Config, group: Group, nudge: bool = True) -> Engine:
    """An engine on a loaded model. `nudge`: LoRA's B starts at zero, which hides half of the gradients; move it."""
    compute = {"auto": torch.float32, "bfloat16": torch.bfloat16, "float32": torch.float32}[config.model.compute_dtype]
    engine = build(config, group, compute)
    loaded = load(config.model, config.adapter, seed=config.seed, device=group.device, shard=engine.shard)
    engine.start(CausalLM(loaded.model, loaded.compute_dtype))
    if nudge and isinstance(config.adapter, schema.Lora):
        state = {name: tensor.clone() for name, tensor in engine.trainable_state()}
        for number, (name, tensor) in enumerate(sorted(state.items())):
            if "lora_B" in name:
                generator = torch.Generator().manual_seed(number)
                tensor.normal_(0, 0.05, generator=generator)
        engine.load_trainable_state(lambda name: state[name])
    return engine


def accumulate(engine: Engine, loader: Loader, step: int) -> float:
    """All micro-batches of a step; the sum of token losses on this rank."""
    batches = list(loader.micro_batches(step))
    targets = loader.target_tokens(step)
    return sum(engine.accumulate(b, targets, last=i == len(batches) - 1).item() for i, b in enumerate(batches))


def gradients(group: Group, config: schema.Config) -> tuple[float, dict[str, Tensor]]:
    """The first step's loss and full gradients."""
    engine, data = start(config, group), loader(config, group)
    loss = group.table(accumulate(engine, data, 0)).sum().item()
    full = {name: g.detach().clone() for name, g in engine.gradients()}
    engine.step(0.0)
    return loss / data.target_tokens(0), full


def losses(group: Group, config: schema.Config) -> list[float]:
    """The loss of every step of a short training."""
    engine, data = start(config, group), loader(config, group)
    history = []
    for step in range(data.num_steps):
        loss = group.table(accumulate(engine, data, step)).sum().item()
        engine.step(1e-2)
        history.append(loss / data.target_tokens(step))
    return history


__all__ = ["IGNORED", "accumulate", "config", "corpus", "gradients", "loader", "losses", "start"]
