"""DeepSpeed ZeRO: stage 2 shards gradients and optimizer states, stage 3 the parameters too."""

import logging
import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from distft.config import schema
from distft.data.loader import Batch
from distft.engine import optim
from distft.engine.seam import ReadTensor, Tensors
from distft.model.adapter import saved
from distft.runtime.group import Group
from distft.task.generate import Prompts
from distft.task.module import TaskModule


class Zero:
    """Engine on DeepSpeed. Its own mixed precision stays off: what trains is float32 here as under every engine."""

    def __init__(
        self,
        settings: schema.Zero2 | schema.Zero3,
        group: Group,
        make_optimizer: optim.MakeOptimizer,
        max_grad_norm: float | None,
    ):
        if group.device.type == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        import deepspeed

        if group.device.type == "cpu":
            # It is compiled at first use, for half a minute; a run killed meanwhile leaves a lock behind, at which
            # every later run waits for ever (seen). Gloo does the same reductions.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.deepspeed = deepspeed
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
        self.make_optimizer, self.device = make_optimizer, group.device
        self.world_size = group.ranks.world_size
        self.stage = 3 if settings.traits.shards_blocks else 2
        self.config = _deepspeed_config(settings, max_grad_norm, self.stage)
        self.task: TaskModule
        self.parameters: dict[str, nn.Parameter]
        self.engine: Any

    def shard(self, block: nn.Module) -> None:
        if self.stage == 3:
            self.deepspeed.zero.Init(module=block, config_dict_or_path=self.config, mem_efficient_linear=False)

    def start(self, task: TaskModule) -> None:
        self.shard(task)
        self.task, self.parameters = task, saved.trainable(task.model)
        if self.stage == 3:
            for parameter in task.read_outside_its_module():
                self.deepspeed.zero.register_external_parameter(task, parameter)
        optimizer = self.make_optimizer(self.parameters)
        self.engine, self.optimizer, _, _ = self.deepspeed.initialize(
            model=task, optimizer=optimizer, config=self.config, dist_init_required=False
        )

    def accumulate(self, batch: Batch, target_tokens: int, last: bool) -> Tensor:
        self.engine.train()
        batch, losses, passes = batch.to(self.device), [], self.task.passes
        for number in range(1, passes + 1):
            torch.manual_seed(batch.seed)
            self.engine.set_gradient_accumulation_boundary(last and number == passes)
            loss = self.engine(batch)
            self.engine.backward(loss * self._gradient_scale(target_tokens))
            losses.append(loss.detach())
        return losses[0]

    def _gradient_scale(self, target_tokens: int) -> float:
        return self.world_size / target_tokens / self.task.passes  # DeepSpeed averages over the ranks

    def gradients(self) -> Tensors:
        for name, parameter in self.parameters.items():
            gradient = self.deepspeed.utils.safe_get_full_grad(parameter)
            if gradient is not None:
                yield name, gradient

    def step(self, lr: float) -> float:
        optim.set_rate(self.optimizer, lr)
        self.engine.step()
        return float("nan") if self.optimizer.overflow else float(self.engine.get_global_grad_norm())

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> tuple[Tensor, list[Any]]:
        self.engine.eval()
        return self.engine(batch.to(self.device))

    @torch.no_grad()
    def generate(self, prompts: Prompts) -> list[list[int]]:
        self.engine.eval()
        return self.engine(prompts)

    def trainable_state(self) -> Tensors:
        for name, parameter in self.parameters.items():
            yield name, self.deepspeed.utils.safe_get_full_fp32_param(parameter)

    @torch.no_grad()
    def load_trainable_state(self, read: ReadTensor, names: Iterable[str] | None = None) -> None:
        for name in self.parameters if names is None else names:
            parameter = self.parameters[name]
            value = read(name).to(self.device)
            self._replace(parameter, value)
            if self.stage == 2:
                parameter.copy_(value)
            else:
                with self.deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                    parameter.copy_(value)

    def optimizer_state(self) -> Tensors:
        state = self._flat_state()
        for name, parameter in self.parameters.items():
            for key, value in state.items():
                if value.dim() > 0:
                    value = self.deepspeed.utils.safe_get_full_optimizer_state(parameter, key)
                yield f"{name}.{key}", value

    def load_optimizer_state(self, names: list[str], read: ReadTensor) -> None:
        first = next(iter(self.parameters))
        keys = [name.rpartition(".")[2] for name in names if name.rpartition(".")[0] == first]
        for flat in self._flat_partitions():
            for key in keys:
                value = read(f"{first}.{key}")
                self.optimizer.optimizer.state[flat][key] = torch.zeros_like(flat) if value.dim() else value
        if self.stage == 2:
            self.optimizer._lazy_init_hp_params_optimizer_state()
        for name, parameter in self.parameters.items():
            for key in keys:
                value = read(f"{name}.{key}")
                if value.dim() > 0:
                    self._replace(parameter, value.to(self.device), key)

    @torch.no_grad()
    def _replace(self, parameter: nn.Parameter, value: Tensor, key: str | None = None) -> None:
        """Replaces the float32 master of a parameter, or its optimizer state `key`, by the full `value`."""
        if self.stage == 2:
            utils = self.deepspeed.utils
            if key is None:
                utils.safe_set_full_fp32_param(parameter, value)
            else:
                utils.safe_set_full_optimizer_state(parameter, value, key)
            return
        # DeepSpeed's own setter reads past the end of a weight that the ranks do not divide: a bias of three labels.
        share, _ = self.optimizer._get_fp32_opt_state_partition(parameter, False, optim_state_key=key)
        start = share.numel() * self.optimizer._get_param_partition_rank(parameter)
        mine = value.flatten()[start : start + share.numel()]
        share[: mine.numel()].copy_(mine)

    def _flat_partitions(self) -> list[Tensor]:
        """This rank's float32 partitions, which are what the optimizer sees as its parameters."""
        return (
            self.optimizer.fp32_partitioned_groups_flat
            if self.stage == 3
            else (self.optimizer.single_partition_of_fp32_groups)
        )

    def _flat_state(self) -> dict[str, Tensor]:
        return self.optimizer.optimizer.state[self._flat_partitions()[0]]


def _deepspeed_config(settings: schema.Zero2 | schema.Zero3, max_grad_norm: float | None, stage: int) -> dict[str, Any]:
    bucket = int(settings.bucket_mb * 1e6 / 4)
    zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    if settings.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if isinstance(settings, schema.Zero3):
        zero["stage3_prefetch_bucket_size"] = int(settings.prefetch_mb * 1e6 / 4)
        zero["stage3_param_persistence_threshold"] = 0
        # The defaults keep a billion gathered weights alive: more than a rank's share is meant to cost.
        zero["stage3_max_live_parameters"] = zero["stage3_prefetch_bucket_size"]
        zero["stage3_max_reuse_distance"] = 0
        if settings.offload_params:
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        # Batch sizes are the loader's; DeepSpeed is told each boundary.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm or 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
