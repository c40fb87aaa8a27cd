"""The process group: joining it, leaving it, and the few small agreements between ranks outside an engine."""

import os
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from distft.runtime.env import Ranks
from distft.runtime.rendezvous import meet

JOIN_MIN = 10
"""How long ranks wait for each other at the start: a node may have its packages on a cold file system."""


class Group:
    """All ranks of the run. `device` is this rank's; host-side agreements go over gloo on any device.

    Every method is a collective: all ranks must call it, in the same order.
    """

    def __init__(self, ranks: Ranks, timeout_min: float = 30):
        self.ranks = ranks
        self.agreed_at = time.monotonic()
        cuda = torch.cuda.is_available()
        # One task a GPU with its own CUDA_VISIBLE_DEVICES sees one device, whatever its local rank.
        self.device = (
            torch.device("cuda", ranks.local_rank % torch.cuda.device_count()) if cuda else torch.device("cpu")
        )
        if cuda:
            torch.cuda.set_device(self.device)
        backend, timeout = "cpu:gloo,cuda:nccl" if cuda else "gloo", timedelta(minutes=timeout_min)
        # DeepSpeed and torch's device meshes read these.
        os.environ.update(
            RANK=str(ranks.global_rank), LOCAL_RANK=str(ranks.local_rank), WORLD_SIZE=str(ranks.world_size)
        )
        with meet(ranks, timeout_s=60 * JOIN_MIN) as store:
            dist.init_process_group(
                backend, store=store, rank=ranks.global_rank, world_size=ranks.world_size, timeout=timeout
            )
            self.host = dist.new_group(backend="gloo", timeout=timeout)
            self.barrier()  # rank 0 answers until all are in

    def table(self, *values: float) -> torch.Tensor:
        """Every rank's values, float64 `[world_size, len(values)]`: one small collective for many agreements."""
        mine = torch.tensor(values, dtype=torch.float64)
        rows = torch.empty(self.ranks.world_size, len(values), dtype=torch.float64)
        dist.all_gather_into_tensor(rows.view(-1), mine, group=self.host)
        self.agreed_at = time.monotonic()
        return rows

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""
        return bool(self.table(flag).any())

    def from_main(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.host)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank, by rank."""
        values: list[Any] = [None] * self.ranks.world_size
        dist.all_gather_object(values, value, group=self.host)
        return values

    def to_main(self, value: Any) -> list[Any]:
        """Every rank's value, by rank, on rank 0; nothing on the others."""
        values: list[Any] | None = [None] * self.ranks.world_size if self.ranks.is_main else None
        dist.gather_object(value, values, dst=0, group=self.host)
        return values or []

    def barrier(self) -> None:
        dist.barrier(group=self.host)

    def leave(self) -> None:
        dist.destroy_process_group()
