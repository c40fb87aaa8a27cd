"""Is every node fit to train? A few seconds of matmuls and all-reduces on each rank, before anything is loaded."""

import time
from statistics import median

import torch
import torch.distributed as dist

from distft.runtime.group import Group

SECONDS = 2.5
"""Of matmuls, and as long of all-reduces."""
SIZE = {"cuda": 8192, "cpu": 512}
MEGABYTES = {"cuda": 256, "cpu": 4}
SLOW = 0.6
"""Of the median rank's rate. Cards of one kind differ by a few percent; a throttled or shared one by half."""


def preflight(group: Group) -> dict[str, str]:
    """What is wrong, by node; empty: all are fit. Every rank calls it."""
    rate, same = _matmuls(group.device)
    group.barrier()
    right = _all_reduces(group)
    table = group.table(rate, same and right)
    return judge(group.gather(group.ranks.node), table[:, 0].tolist(), [bool(sound) for sound in table[:, 1]])


def judge(nodes: list[str], rates: list[float], sound: list[bool]) -> dict[str, str]:
    """Nodes that compute wrongly or slowly; `nodes`, `rates` (TFLOP/s) and `sound` by rank."""
    usual = median(rates)
    wrong: dict[str, str] = {}
    for rank, (node, rate) in enumerate(zip(nodes, rates, strict=True)):
        if not sound[rank]:
            wrong[node] = f"rank {rank} multiplies or adds wrongly"
        elif rate < SLOW * usual and node not in wrong:
            wrong[node] = f"rank {rank} multiplies at {rate:.3g} TFLOP/s, the median rank at {usual:.3g}"
    return wrong


def _matmuls(device: torch.device) -> tuple[float, bool]:
    """TFLOP/s, and whether every product was the same: a broken card gives another one now and then."""
    size = SIZE[device.type]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(0)
    a = torch.randn(size, size, device=device, dtype=dtype, generator=generator)
    first = a @ a
    count, same, began = 0, torch.ones((), dtype=torch.bool, device=device), time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        product = a @ a
        same &= torch.equal(product, first)
        count += 1
    return 2 * size**3 * count / (time.perf_counter() - began) / 1e12, bool(same)


def _all_reduces(group: Group) -> bool:
    """Whether every sum over the ranks came out right; a link that is broken shows in its time-out."""
    values = torch.empty(MEGABYTES[group.device.type] * 2**18, device=group.device)
    began, right = time.perf_counter(), True
    while group.table(time.perf_counter() - began)[0, 0] < SECONDS:  # rank 0's clock: all leave at the same count
        values.fill_(1)
        dist.all_reduce(values)
        right &= bool((values == group.ranks.world_size).all())
    return right
