"""FSDP2: parameters sharded over the ranks and gathered block by block; on a 2-D mesh, replicas of sharded groups."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from distft.config import schema
from distft.engine.fsdp_bytes import take_bytes
from distft.engine.optim import MakeOptimizer
from distft.engine.single import Single
from distft.runtime.group import Group
from distft.task.module import TaskModule


class Fsdp(Single):
    """Engine on `fully_shard` (torch.distributed.fsdp). Frozen and 4-bit parameters are sharded like all others."""

    def __init__(
        self,
        settings: schema.Fsdp,
        group: Group,
        make_optimizer: MakeOptimizer,
        max_grad_norm: float | None,
        compute: torch.dtype,
    ):
        super().__init__(group, make_optimizer, max_grad_norm)
        take_bytes()
        world_size = group.ranks.world_size
        shards = settings.shard_size or world_size
        kind = group.device.type
        if shards == world_size:
            mesh = init_device_mesh(kind, (world_size,), mesh_dim_names=("shard",))
        else:
            mesh = init_device_mesh(kind, (world_size // shards, shards), mesh_dim_names=("replicate", "shard"))
        self.world_size = world_size
        # Where matmuls run in bfloat16, trained weights travel in it too; frozen ones travel as they are stored.
        self.policy: dict[str, Any] = {
            "mesh": mesh,
            "mp_policy": MixedPrecisionPolicy(
                param_dtype=compute if compute == torch.bfloat16 else None,
                reduce_dtype=getattr(torch, settings.reduce_dtype),
                cast_forward_inputs=False,
            ),
            "offload_policy": CPUOffloadPolicy() if settings.offload else OffloadPolicy(),
        }
        self.reshard_after_forward = settings.reshard_after_forward

    def shard(self, block: nn.Module) -> None:
        fully_shard(block, reshard_after_forward=self.reshard_after_forward, **self.policy)

    def start(self, task: TaskModule) -> None:
        fully_shard(task, **self.policy)
        super().start(task)

    def _averaged_over(self) -> int:
        return self.world_size

    def _full(self, tensor: Tensor) -> Tensor:
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def _share(self, full: Tensor, like: Tensor) -> Tensor:
        assert isinstance(like, DTensor)
        # Every rank holds the full tensor: cut, don't communicate.
        return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)
