"""What the tests of tasks run on every rank: one step and one evaluation of a run, from its config to its numbers."""

from typing import Any

import torch
from torch import Tensor

from distft.config import schema
from distft.data.loader import Loader
from distft.data.pack import plan
from distft.engine.seam import Engine
from distft.runtime.group import Group
from distft.session.held_out import HeldOut
from distft.session.session import Session
from distft.session.task_data import read
from distft.task.module import TaskModule


def config(task: dict[str, Any], model: dict[str, Any], data: dict[str, Any], **changes: Any) -> schema.Config:
    sections: dict[str, Any] = {
        "name": "test",
        "steps": 3,
        "task": task,
        "model": {"dtype": "float32", "compute_dtype": "float32", **model},
        "adapter": {"method": "lora", "r": 4, "alpha": 8},
        "engine": {"name": "single"},
        "data": {"max_length": 48, "packing": False, "global_batch": 8, "micro_batch": 2, "num_workers": 1, **data},
        "optim": {"name": "adamw", "lr": 1e-2, "warmup": 0, "schedule": "constant"},
        "checkpoint": {},
        "evaluation": {},
        "tracking": {"name": "none"},
        "cluster": {"name": "local"},
    }
    return schema.Config.model_validate({**sections, **changes})


def start(group: Group, config: schema.Config) -> tuple[Engine, Loader, HeldOut, TaskModule]:
    data = read(config)
    session = Session.start(config, group, data)
    engine, corpus = session.engine, data.prepared.train
    state = {name: tensor.clone() for name, tensor in engine.trainable_state()}
    for number, name in enumerate(sorted(state)):
        if "lora_B" in name:  # zero at the start, which hides half of the gradients
            state[name].normal_(0, 0.05, generator=torch.Generator().manual_seed(number))
    engine.load_trainable_state(lambda name: state[name])
    loader = Loader(
        corpus,
        plan(corpus.lengths, config.data.max_length, config.data.packing),
        data=config.data,
        seed=config.seed,
        steps=config.steps,
        epochs=config.epochs,
        global_rank=group.ranks.global_rank,
        world_size=group.ranks.world_size,
        pad_id=data.pad_id,
    )
    return engine, loader, HeldOut.of(session, data), session.module


def one_step(group: Group, config: schema.Config) -> tuple[float, dict[str, Tensor], dict[str, float]]:
    """The first step's loss and full gradients, and what an evaluation says before it."""
    engine, loader, rows, module = start(group, config)
    # Evaluation mode in training: dropout of the model's own would be drawn apart for every grouping of rows.
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    scores = rows.score()
    assert scores is not None
    measured = set(rows.data.task.metrics(rows.data.facts))
    assert set(scores.numbers) - {"loss", "perplexity"} == measured <= set(config.task.traits.metrics)
    batches, targets = list(loader.micro_batches(0)), loader.target_tokens(0)
    losses = [engine.accumulate(batch, targets, last=i == len(batches) - 1) for i, batch in enumerate(batches)]
    loss = group.table(torch.stack(losses).sum().item()).sum().item() / targets
    gradients = {name: gradient.detach().clone() for name, gradient in engine.gradients()}
    engine.step(0.0)
    return loss, gradients, scores.numbers
