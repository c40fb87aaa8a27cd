"""What the tests of methods run on every rank: a few steps of a tiny model with one method, saved and gone on from."""

from pathlib import Path
from typing import Any

import engine_cases
import torch
from families import FAMILIES, corpus
from torch import Tensor

from distft.config import schema
from distft.engine import schedule
from distft.engine.build import build
from distft.engine.seam import Engine
from distft.model.adapter import saved
from distft.model.load import load
from distft.run.checkpoints import Checkpoints
from distft.runtime.group import Group
from distft.runtime.location import choose
from distft.task import build as tasks

LR = 1e-2
STEPS = 2


def config(
    adapter: dict[str, Any], engine: str, quantization: str = "none", family: str = "causal_lm", **changes: Any
) -> schema.Config:
    """A run of two steps on rows of one document each, which every method takes."""
    shape = FAMILIES[family].shape
    if shape["model_type"] == "llama":
        shape = {**shape, "attention_bias": adapter["method"] in ("bitfit", "beft")}  # they train biases
    sections: dict[str, Any] = {
        "task": {"name": family},
        "model": {"random_init": shape, "quantization": quantization},
        "data": {"max_length": 40, "global_batch": 4, "packing": False},
        "steps": STEPS,
        **changes,
    }
    whole = engine_cases.config({"name": engine}, **sections).model_dump()
    return schema.Config.model_validate({**whole, "adapter": adapter})


class Course:
    """A run at its start: engine, data and checkpoints, without a loop."""

    def __init__(self, group: Group, config: schema.Config, folder: Path):
        self.engine: Engine = build(config, group, torch.float32)
        task, facts = tasks.build(config.task), FAMILIES[config.task.name].facts
        loaded = load(
            config.model,
            config.adapter,
            seed=config.seed,
            device=group.device,
            shard=self.engine.shard,
            architecture=task.architecture(facts),
        )
        self.task, self.group = task.module(loaded, facts), group
        self.task.regularise(config.regularisation)
        self.checkpoints = Checkpoints(
            folder,
            group,
            weights=saved.weights_file(loaded.model),
            keep=2,
            describe=saved.describe(loaded.model, config.adapter, choose(config.model.source), self.task.facts),
            beside=saved.beside(loaded.model),
        )
        self.engine.start(self.task)
        self.loader = engine_cases.loader(config, group, corpus(config.task.name, _made(folder, group)))
        names = list(saved.trainable(self.task.model))
        self.schedule = schedule.build(loaded.model, config.adapter, names, self.loader.num_steps)

    def step(self, number: int) -> tuple[float, dict[str, Tensor]]:
        """The loss and the gradients of a step that is then taken."""
        self.schedule.begin(number)
        loss = self.group.table(engine_cases.accumulate(self.engine, self.loader, number)).sum().item()
        gradients = {name: gradient.detach().clone() for name, gradient in self.engine.gradients()}
        self.schedule.before_update(self.engine)
        self.engine.step(LR)
        self.schedule.after_update(self.engine, number)
        return loss / self.loader.target_tokens(number), gradients

    def save(self, step: int) -> None:
        self.checkpoints.save(self.engine, step, {"best_step": None, "step": step}, self.schedule.state())
        self.checkpoints.wait(must_succeed=True)

    def trained(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.engine.trainable_state()}

    def frozen(self) -> dict[str, Tensor]:
        """This rank's part of everything that is not to train."""
        trains = {id(parameter) for parameter in saved.trainable(self.task.model).values()}
        rest = {name: p for name, p in self.task.named_parameters() if id(p) not in trains}
        return {name: _held(tensor).clone() for name, tensor in [*rest.items(), *self.task.named_buffers()]}


def _made(folder: Path, group: Group) -> Path:
    """A folder of this rank's own."""
    mine = folder / f"data-{group.ranks.global_rank}"
    mine.mkdir(parents=True, exist_ok=True)
    return mine


def _held(tensor: Any) -> Tensor:
    if hasattr(tensor, "ds_tensor"):
        return tensor.ds_tensor.detach()
    return tensor.to_local().detach() if hasattr(tensor, "to_local") else tensor.detach()


def run(group: Group, config: schema.Config, folder: Path, resumes: bool = True) -> dict[str, Any]:
    """Two steps, saved after the first; then another engine that goes on from there. What was found, for the test."""
    course = Course(group, config, folder)
    before, base = course.trained(), course.frozen()
    loss, first = course.step(0)
    course.save(1)
    _, second = course.step(1)
    after = course.trained()
    resumed = after
    if resumes:
        again = Course(group, config, folder)
        again.checkpoints.load(again.engine, folder / "checkpoints" / "step-00000001", again.schedule)
        again.step(1)
        resumed = again.trained()
    trained_on = {name for grads in (first, second) for name, gradient in grads.items() if gradient.any()}
    return {
        "loss": loss,
        "gradients": first if group.ranks.is_main else {},
        "trains": sorted(before),
        "without gradient": sorted(before.keys() - trained_on),
        "still": sorted(name for name in before if torch.equal(before[name], after[name])),
        "base moved": sorted(name for name, tensor in course.frozen().items() if not torch.equal(tensor, base[name])),
        "differs after resume": sorted(name for name in after if not torch.equal(after[name], resumed[name])),
        "dtypes": sorted({str(tensor.dtype) for tensor in after.values()}),
    }


def gradients(group: Group, config: schema.Config, folder: Path, steps: int = 1) -> list[dict[str, Tensor]]:
    """The gradients of the first steps."""
    course = Course(group, config, folder)
    return [course.step(number)[1] for number in range(steps)]


def trained_after(group: Group, config: schema.Config, folder: Path, stop_at: int | None) -> dict[str, Tensor]:
    """What trains at the end of all steps; stopped, saved and gone on from after `stop_at`."""
    course = Course(group, config, folder)
    for number in range(config.steps or 0):
        if number == stop_at:
            course.save(number)
            course = Course(group, config, folder)
            course.checkpoints.load(course.engine, course.checkpoints.newest(), course.schedule)
        course.step(number)
    return course.trained()
