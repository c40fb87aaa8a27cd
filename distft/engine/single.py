"""One process, plain PyTorch: the reference that every other engine is tested against."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from distft.data.loader import Batch
from distft.engine import optim
from distft.engine.seam import ReadTensor, Tensors
from distft.model.adapter import saved
from distft.runtime.group import Group
from distft.task.generate import Prompts
from distft.task.module import TaskModule


class Single:
    """Engine of one rank. Its small private methods are where FSDP2 differs."""

    def __init__(self, group: Group, make_optimizer: optim.MakeOptimizer, max_grad_norm: float | None):
        self.device, self.make_optimizer, self.max_grad_norm = group.device, make_optimizer, max_grad_norm
        self.task: TaskModule
        self.parameters: dict[str, nn.Parameter]
        self.optimizer: torch.optim.Optimizer

    def shard(self, block: nn.Module) -> None:
        pass

    def start(self, task: TaskModule) -> None:
        self.task = task
        self.parameters = saved.trainable(task.model)
        self.optimizer = self.make_optimizer(self.parameters)

    def accumulate(self, batch: Batch, target_tokens: int, last: bool) -> Tensor:
        self.task.train()
        batch, losses = batch.to(self.device), []
        for _ in range(self.task.passes):
            torch.manual_seed(batch.seed)
            loss = self.task(batch)
            (loss * self._gradient_scale(target_tokens)).backward()
            losses.append(loss.detach())
        return losses[0]

    def gradients(self) -> Tensors:
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                yield name, self._full(parameter.grad)

    def step(self, lr: float) -> float:
        optim.set_rate(self.optimizer, lr)
        parameters = [p for p in self.parameters.values() if p.grad is not None]
        total = self._full(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        norm = total.item()
        if math.isfinite(norm):
            if self.max_grad_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, total)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> tuple[Tensor, list[Any]]:
        self.task.eval()
        return self.task(batch.to(self.device))

    @torch.no_grad()
    def generate(self, prompts: Prompts) -> list[list[int]]:
        self.task.eval()
        return self.task(prompts)

    def trainable_state(self) -> Tensors:
        for name, parameter in self.parameters.items():
            yield name, self._full(parameter.detach())

    @torch.no_grad()
    def load_trainable_state(self, read: ReadTensor, names: Iterable[str] | None = None) -> None:
        for name in self.parameters if names is None else names:
            parameter = self.parameters[name]
            parameter.copy_(self._share(read(name).to(self.device), parameter))

    def optimizer_state(self) -> Tensors:
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                yield f"{name}.{key}", self._full(torch.as_tensor(value))

    def load_optimizer_state(self, names: list[str], read: ReadTensor) -> None:
        for full_name in names:
            name, _, key = full_name.rpartition(".")
            parameter, saved = self.parameters[name], read(full_name)
            value: Tensor | int = saved
            if saved.dim() > 0:
                value = self._share(saved.to(self.device), parameter)
            elif not saved.is_floating_point():  # bitsandbytes counts steps in int, torch in float tensors on the host
                value = int(saved)
            self.optimizer.state[parameter][key] = value

    def _gradient_scale(self, target_tokens: int) -> float:
        return self._averaged_over() / target_tokens / self.task.passes

    def _averaged_over(self) -> int:
        """How many ranks the engine's own reduction averages over."""
        return 1

    def _full(self, tensor: Tensor) -> Tensor:
        return tensor

    def _share(self, full: Tensor, like: Tensor) -> Tensor:
        return full
