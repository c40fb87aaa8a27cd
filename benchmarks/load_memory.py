"""Peak host memory of loading a model: one process against two ranks that share it.

    python -m benchmarks.load_memory

A Llama of random weights, 6 GB in float32 on disk. Each rank loads it as training would and takes two steps.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.measure import Target, peak_memory_bytes, report, require

LIMIT = 0.6
RANKS = {"single": 1, "fsdp": 2, "zero2": 2, "zero3": 2}
LAYER = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16, "num_key_value_heads": 16}
LAYER_BYTES = 4 * (4 * 2048 * 2048 + 3 * 2048 * 8192)


def write_model(folder: Path, gigabytes: float) -> int:
    """Writes it in files of one layer each; returns its size in bytes."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    num_layers = round(gigabytes * 1e9 / LAYER_BYTES)
    config = LlamaConfig(num_hidden_layers=num_layers, vocab_size=8192, tie_word_embeddings=True, **LAYER)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    weight_map, total = {}, 0
    groups: dict[str, list[tuple[str, torch.Size]]] = {}
    for name, parameter in model.named_parameters():
        layer = name.split(".")[2] if ".layers." in name else "rest"
        groups.setdefault(layer, []).append((name, parameter.shape))
    folder.mkdir()
    for layer, parameters in groups.items():
        file = f"model-{layer}.safetensors"
        # Norms are ones, as no training starts without.
        tensors = {
            name: torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * 0.02
            for name, shape in parameters
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        total += sum(tensor.nbytes for tensor in tensors.values())
        weight_map.update(dict.fromkeys(tensors, file))
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return total


def rank(name: str, folder: Path, out: Path) -> None:
    """One rank: loads, computes a loss, leaves its peaks in `out`."""
    import torch

    from distft.config import schema
    from distft.data.loader import Batch
    from distft.engine import build as engines
    from distft.model import load as model
    from distft.runtime.env import read_ranks
    from distft.runtime.group import Group
    from distft.task.causal_lm import CausalLM

    engine_section = {"single": schema.Single, "fsdp": schema.Fsdp, "zero2": schema.Zero2, "zero3": schema.Zero3}[name]
    lora = schema.Lora(method="lora", r=8)
    settings = _Settings(engine_section(name=name), schema.AdamW(name="adamw", lr=1e-4), lora)
    group = Group(read_ranks())
    section = schema.Model(source=str(folder), dtype="float32")
    engine = engines.build(settings, group, torch.float32)  # type: ignore[arg-type]
    imported = peak_memory_bytes()
    loaded = model.load(section, lora, seed=0, device=group.device, shard=engine.shard)
    engine.start(CausalLM(loaded.model, loaded.compute_dtype))
    after_load = peak_memory_bytes()
    ids = torch.arange(64).view(1, 64)
    ends = torch.tensor([0, 64], dtype=torch.int32)
    batch = Batch(ids, ids, ids + 1, ends, max_document=64, num_tokens=64, num_targets=64, seed=0)
    losses = []
    for _ in range(2):  # ZeRO-3 prefetches from the second step on
        losses.append(float(engine.accumulate(batch, target_tokens=64 * group.ranks.world_size, last=True)))
        engine.step(1e-4)
    result = {"imported": imported, "loaded": after_load, "stepped": peak_memory_bytes(), "losses": losses}
    (out / f"{group.ranks.global_rank}.json").write_text(json.dumps(result))
    group.barrier()
    group.leave()


class _Settings:
    """As much of a config as `engine.build` reads."""

    def __init__(self, engine: Any, optim: Any, adapter: Any):
        self.engine, self.optim, self.adapter = engine, optim, adapter


def run_ranks(name: str, folder: Path) -> list[dict[str, Any]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world_size = RANKS[name]
    with tempfile.TemporaryDirectory() as out:
        command = [
            sys.executable,
            "-m",
            "benchmarks.load_memory",
            f"--arm={name}",
            f"--folder={folder}",
            f"--out={out}",
        ]
        processes = []
        for number in range(world_size):
            ranks = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
            env = {**os.environ, **{key: str(value) for key, value in ranks.items()}, **address}
            processes.append(subprocess.Popen(command, env=env))
        codes = [process.wait() for process in processes]
        require(codes == [0] * world_size, f"{name}: ranks ended with {codes}")
        return [json.loads((Path(out) / f"{number}.json").read_text()) for number in range(world_size)]


def main() -> int:
    parser = measure.parser(__doc__)
    parser.add_argument("--gigabytes", type=float, default=6.0)
    parser.add_argument("--engines", nargs="+", choices=list(RANKS)[1:], default=["fsdp", "zero3"])
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        rank(args.arm, args.folder, args.out)
        return 0
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        size = write_model(folder, args.gigabytes)
        for name in ["single", *args.engines]:
            results[name] = run_ranks(name, folder)
    rows, targets = [], []
    single = max(r["loaded"] for r in results["single"])
    for name, ranks in results.items():
        for one in ranks:
            for loss, expected in zip(one["losses"], results["single"][0]["losses"], strict=True):
                require(expected > 0, f"{name}: loss must be above zero")
                require(abs(loss - expected) <= 1e-4 * expected, f"{name}: losses {loss} and {expected}")
        peaks = {key: max(r[key] for r in ranks) for key in ("imported", "loaded", "stepped")}
        share = peaks["loaded"] / single
        rows.append([name, str(len(ranks)), *(f"{peak / 1e9:.2f}" for peak in peaks.values()), f"{share:.2f}"])
        if name != "single":
            targets.append(Target(f"{name}: peak while loading, share of single's", share, LIMIT))
    columns = ["engine", "ranks", "imports GB", "loaded GB", "after two steps GB", "share of single"]
    return report("load_memory", args, columns, rows, targets, model_bytes=size, measured=results)


if __name__ == "__main__":
    sys.exit(main())
