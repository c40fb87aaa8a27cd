"""What the exactness tests run on a rank: float64 models, planted bytes, counted bytes."""

from functools import partial
from typing import Any

import engine_cases
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distft.config import schema
from distft.data import pack
from distft.data.loader import collate
from distft.engine import optim
from distft.engine.build import build
from distft.engine.single import Single
from distft.model.adapter import saved
from distft.model.load import compute_dtype, load
from distft.model.packed import documents
from distft.model.quantize import StoredLinear
from distft.runtime.group import Group
from distft.task.causal_lm import CausalLM


def double_task(config: schema.Config, group: Group) -> CausalLM:
    loaded = load(config.model, config.adapter, seed=0, device=group.device, shard=lambda block: None)
    task = CausalLM(loaded.model.double(), torch.float32)
    for number, (name, parameter) in enumerate(sorted(saved.trainable(task.model).items())):
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(number))
    return task


def reference_gradients(group: Group, config: schema.Config) -> tuple[float, dict[str, Tensor]]:
    """Step 0 the slow way: every document alone through the model's own logits, one cross-entropy over all of them."""
    task, loader = double_task(config, group), engine_cases.loader(config, group)
    losses, count = [], 0
    for row in loader.rows(0):
        for number in loader._rows[row]:
            ids, targets = (torch.from_numpy(part) for part in loader.corpus.document(number))
            position = torch.arange(len(ids))[None]
            ends = torch.tensor([0, len(ids)], dtype=torch.int32)
            logits = task.model(
                input_ids=ids[None], position_ids=position, **documents(task.base, ends, len(ids))
            ).logits[0]
            losses.append(F.cross_entropy(logits, targets, ignore_index=engine_cases.IGNORED, reduction="sum"))
            count += int((targets != engine_cases.IGNORED).sum())
    loss = torch.stack(losses).sum() / count
    loss.backward()
    return loss.item(), {name: p.grad for name, p in saved.trainable(task.model).items()}


def engine_gradients(group: Group, config: schema.Config) -> tuple[float, dict[str, Tensor]]:
    """The same step through `single`: packed or padded, in micro-batches."""
    engine, loader = Single(group, partial(optim.build, config.optim), None), engine_cases.loader(config, group)
    engine.start(double_task(config, group))
    loss = engine_cases.accumulate(engine, loader, 0) / loader.target_tokens(0)
    return loss, dict(engine.gradients())


def document_logits(group: Group, config: schema.Config, changed: int | None) -> tuple[Tensor, list[int]]:
    """Logits of one packed row, with a token of its document `changed` replaced; and where documents end."""
    task, loader = double_task(config, group), engine_cases.loader(config, group)
    task.eval()
    row = max(range(len(loader._rows)), key=lambda r: len(loader._rows[r]))
    batch = collate(loader.corpus, loader._rows, [row], 0, seed=0)
    ends = batch.document_ends.tolist()
    if changed is not None:
        batch.input_ids[0, ends[changed]] = (batch.input_ids[0, ends[changed]] + 1) % 300
    with torch.no_grad():
        bounds = documents(task.base, batch.document_ends, batch.max_document)
        out = task.model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, **bounds)
    return out.logits[0], ends


def planted_bytes(group: Group, config: schema.Config) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, int]]:
    """Bytes planted into the stored layers before sharding, the same gathered after a training step, and bytes held."""
    engine = build(config, group, compute_dtype(config.model, group.device))
    planted: dict[str, Tensor] = {}
    layers: dict[str, StoredLinear] = {}

    def plant_and_shard(block: nn.Module) -> None:
        for name, layer in block.named_modules():
            if isinstance(layer, StoredLinear):
                key = f"{len(planted)}.{name}"
                size = layer.stored.numel()
                # Every byte pair that a bfloat16 may read as NaN or infinity, of both signs, then all others.
                suspects = [0x7F81, 0x7FC0, 0x7FFF, 0xFF81, 0xFFC0, 0xFFFF, 0x7F80, 0xFF80, 0x0001, 0x8001]
                pattern = torch.tensor([b for s in suspects for b in (s & 0xFF, s >> 8)], dtype=torch.uint8)
                start = sum(layer.encoding.sizes[:2])  # the scales stay numbers: the step must run
                layer.stored.data[start:] = pattern.repeat(-(-size // len(pattern)))[: size - start]
                planted[key], layers[key] = layer.stored.detach().clone(), layer
        engine.shard(block)

    loaded = load(config.model, config.adapter, seed=0, device=group.device, shard=plant_and_shard)
    engine.start(CausalLM(loaded.model, loaded.compute_dtype))
    loader = engine_cases.loader(config, group)
    engine_cases.accumulate(engine, loader, 0)
    engine.step(1e-3)
    held = {key: _held_bytes(layer.stored) for key, layer in layers.items()}
    return planted, {key: _gather(layer.stored) for key, layer in layers.items()}, held


def _held_bytes(parameter: Any) -> int:
    if hasattr(parameter, "ds_tensor"):
        return parameter.ds_tensor.nbytes + parameter.data.nbytes
    return parameter.to_local().nbytes if hasattr(parameter, "to_local") else parameter.nbytes


def _gather(parameter: Any) -> Tensor:
    if hasattr(parameter, "ds_tensor"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter.detach().clone()


def recomputed_gradients(group: Group, config: schema.Config) -> dict[str, Tensor]:
    return engine_cases.gradients(group, config)[1]


def plan_rows(config: schema.Config) -> int:
    return len(pack.plan(engine_cases.corpus().lengths, config.data.max_length, config.data.packing))
