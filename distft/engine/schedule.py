"""What of an adapter changes from step to step: nothing, which blocks train yet, or AdaLoRA's ranks.

All of it is a function of the step and of tensors that the checkpoint holds, so that a resumed run goes on alike.
"""

from collections.abc import Callable, Iterator
from copy import copy
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from peft import PeftModel
from peft.tuners.adalora import AdaLoraModel
from peft.tuners.adalora.layer import RankAllocator
from torch import Tensor, nn

from distft.config import schema
from distft.engine.seam import Engine
from distft.model.adapter.own_weights import blocks
from distft.model.adapter.peft_methods import ADAPTER

ReadTensor = Callable[[str], Tensor]


class Schedule(Protocol):
    """Every rank calls every method, in this order, at each step."""

    late: frozenset[str]
    """Parameters that get no gradient in the first steps, by their names in a checkpoint."""

    def begin(self, step: int) -> None:
        """Before the forward passes of 0-based `step`."""
        ...

    def before_update(self, engine: Engine) -> None:
        """When the step's gradients are whole, and not applied yet."""
        ...

    def after_update(self, engine: Engine, step: int) -> None:
        """When they are."""
        ...

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Tensors that the next step needs, for the checkpoint; none where the step's number is enough."""
        ...

    def load_state(self, names: list[str], read: ReadTensor) -> None:
        """Takes them back."""
        ...


class Constant:
    """Nothing changes."""

    late: frozenset[str] = frozenset()

    def begin(self, step: int) -> None:
        pass

    def before_update(self, engine: Engine) -> None:
        pass

    def after_update(self, engine: Engine, step: int) -> None:
        pass

    def state(self) -> Iterator[tuple[str, Tensor]]:
        return iter(())

    def load_state(self, names: list[str], read: ReadTensor) -> None:
        assert not names, "a checkpoint with the state of a schedule that this run does not have"


class Unfreezing(Constant):
    """One more block trains each `every` steps, from the top: ULMFiT (arXiv:1801.06146) section 3.3.

    The gradient is set to zero on its way into the blocks that do not train yet. To every engine they are parameters
    like all others, with gradients and optimizer states of zero: nothing changes its shape.
    """

    def __init__(self, model: Any, count: int | None, every: int):
        found = blocks(model)[-(count or 0) :]
        self.every, self.open = every, len(found)
        self.late = frozenset(_late(model, found[-1][0]))
        for below_top, (_, block) in enumerate(reversed(found)):
            block.register_forward_pre_hook(self._gate(below_top), with_kwargs=True)

    def begin(self, step: int) -> None:
        self.open = 1 + step // self.every

    def _gate(self, below_top: int) -> Callable[..., Any]:
        def gate(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self.open != below_top + 1:
                return None
            if args:
                return (_shut(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": _shut(kwargs["hidden_states"])}

        return gate


def _late(model: Any, top: str) -> Iterator[str]:
    """What a gradient reaches only through the block `top`: the other blocks, and what stands before them all."""
    head = model.get_output_embeddings()
    tied = {id(p) for p in head.parameters()} if head is not None else set()
    paths, passed = [f"{path}." for path, _ in blocks(model)], False
    for name, parameter in model.named_parameters():
        path = next((path for path in paths if name.startswith(path)), None)
        passed = passed or path is not None
        reached = path == f"{top}." if path is not None else passed or id(parameter) in tied
        if parameter.requires_grad and not reached:
            yield name


def _shut(hidden: Tensor) -> Tensor:
    return _Shut.apply(hidden) if hidden.requires_grad else hidden


class _Shut(torch.autograd.Function):
    """The same forward; zeros backward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.zeros_like(grad)


class AdaLoraBudget(Constant):
    """AdaLoRA's budget of ranks (arXiv:2303.10512), by PEFT's own allocator on full tensors, on every rank alike.

    What it needs besides the step is the smoothed importance of each weight and its variation, and the last masks.
    """

    def __init__(self, model: PeftModel, names: list[str], num_steps: int):
        model.peft_config[ADAPTER].total_step = num_steps
        self.settings = copy(model.peft_config[ADAPTER])  # PEFT would resize a model whose config has a rank pattern
        self.names = names
        self.gradients: dict[str, Tensor] = {}
        self.allocator: Any = None
        self.saved: dict[str, Tensor] = {}

    def before_update(self, engine: Engine) -> None:
        self.gradients = {name: gradient.detach().clone() for name, gradient in engine.gradients()}

    def after_update(self, engine: Engine, step: int) -> None:
        tuner = self._tuner(engine)
        AdaLoraModel.update_and_allocate(tuner, step + 1)
        values = {name.removesuffix(f".{ADAPTER}"): p.detach() for name, p in tuner.model.named_parameters()}
        engine.load_trainable_state(values.__getitem__, [name for name in self.names if name.endswith("lora_E")])
        self.gradients = {}

    def _tuner(self, engine: Engine) -> Any:
        """What PEFT's allocator takes for its model: full parameters with full gradients."""
        parameters = {}
        for name, tensor in engine.trainable_state():
            parameter = nn.Parameter(tensor.detach().clone())
            parameter.grad = self.gradients.get(name, torch.zeros_like(parameter))
            parameters[f"{name}.{ADAPTER}"] = parameter
        model = SimpleNamespace(named_parameters=parameters.items)
        if self.allocator is None:
            self.allocator = RankAllocator(model, self.settings, ADAPTER)
            self._restore(parameters)
        return SimpleNamespace(
            peft_config={ADAPTER: self.settings},
            trainable_adapter_name=ADAPTER,
            rankallocator=self.allocator,
            model=model,
        )

    def _restore(self, parameters: dict[str, nn.Parameter]) -> None:
        for full_name, tensor in self.saved.items():
            name, _, kind = full_name.rpartition(".")
            if kind == "mask":
                pattern = self.settings.rank_pattern or {}
                self.settings.rank_pattern = {**pattern, f"{name}.{ADAPTER}": tensor.bool().tolist()}
                continue
            key = f"{name}.{ADAPTER}"
            device = parameters[key].device
            getattr(self.allocator, kind)[key] = tensor.to(device)
            self.allocator.ipt.setdefault(key, torch.zeros_like(parameters[key]))
        self.saved = {}

    def state(self) -> Iterator[tuple[str, Tensor]]:
        if self.allocator is None:
            yield from self.saved.items()
            return
        for kind in ("exp_avg_ipt", "exp_avg_unc"):
            for key, tensor in getattr(self.allocator, kind).items():
                yield f"{key.removesuffix(f'.{ADAPTER}')}.{kind}", tensor
        for key, pattern in (self.settings.rank_pattern or {}).items():
            yield f"{key.removesuffix(f'.{ADAPTER}')}.mask", torch.tensor(pattern, dtype=torch.uint8)

    def load_state(self, names: list[str], read: ReadTensor) -> None:
        self.saved = {name: read(name) for name in names}


def build(model: Any, config: schema.AnyAdapter, names: list[str], num_steps: int) -> Schedule:
    """The schedule of what trains in `model`, whose parameters a checkpoint calls `names`."""
    traits = config.traits
    if traits.unfreeze_every is not None:
        return Unfreezing(model, traits.last_blocks, traits.unfreeze_every)
    if traits.rank_budget:
        return AdaLoraBudget(model, names, num_steps)
    return Constant()
