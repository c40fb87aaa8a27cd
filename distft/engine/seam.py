"""The engine seam: where the parameters live, and one optimizer step over them.

It sits at the height of an optimizer step because DeepSpeed clips, steps and zeroes inside its own `step()`. An engine
scales the gradient itself (`_gradient_scale`), since each averages differently: what it applies is always that of

    sum over ranks and micro-batches of (sum of losses) / (targets of the whole step)
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from torch import Tensor, nn

from distft.data.loader import Batch
from distft.task.generate import Prompts
from distft.task.module import TaskModule

Tensors = Iterator[tuple[str, Tensor]]
ReadTensor = Callable[[str], Tensor]


class Engine(Protocol):
    """One rank's part of an engine. Every method is a collective: all ranks call it, in the same order.

    Tensors that come out or go in are full (unsharded), float32 and named as in `adapter_model.safetensors`.
    """

    def shard(self, block: nn.Module) -> None:
        """Takes a block of the model, whose weights are real, and keeps this rank's share of it."""
        ...

    def start(self, task: TaskModule) -> None:
        """Takes the rest of the model, and makes the optimizer."""
        ...

    def accumulate(self, batch: Batch, target_tokens: int, last: bool) -> Tensor:
        """Adds the batch's gradient; returns its sum of losses on this rank (0-dim, on the device).

        `target_tokens` counts the whole step over all ranks; `last` marks the step's last batch.
        """
        ...

    def gradients(self) -> Tensors:
        """The step's gradients; between the last `accumulate` and `step`. A parameter without one is left out."""
        ...

    def step(self, lr: float) -> float:
        """Clips, steps, zeroes. Returns the gradient's norm before clipping; not finite: nothing was applied."""
        ...

    def evaluate(self, batch: Batch) -> tuple[Tensor, list[Any]]:
        """Sum of losses on this rank (0-dim, on the device), without gradients, and the task's output a document."""
        ...

    def generate(self, prompts: Prompts) -> list[list[int]]:
        """Greedy replies to the same prompts on every rank, as token ids."""
        ...

    def trainable_state(self) -> Tensors:
        """What trains."""
        ...

    def load_trainable_state(self, read: ReadTensor, names: Iterable[str] | None = None) -> None:
        """Replaces what trains, or those of it called `names`, by `read(name)`."""
        ...

    def optimizer_state(self) -> Tensors:
        """The optimizer's tensors, as `<parameter>.<state>`."""
        ...

    def load_optimizer_state(self, names: list[str], read: ReadTensor) -> None:
        """Replaces the optimizer's tensors by those called `names`."""
        ...
