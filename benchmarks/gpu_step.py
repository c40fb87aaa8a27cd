"""A training step on one GPU: tokens per second, peak memory, and the share of what the card's matmuls can do.

    python -m benchmarks.gpu_step

A Llama-3.1-8B shape with random weights, rows of 4096 packed tokens. The matmul rate and the memory bandwidth that the
result is held against are measured on the same card in the same run. FLOPs of a step (multiply and add are two):
4 a frozen weight and token (forward, input gradient), 6 an adapter weight and token, 4 a head weight and supervised
token; attention and recomputation are not counted, so the share is of useful work.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import arms, measure
from benchmarks.measure import Arm, Turns, report, require, synchronize

SHAPES: dict[str, dict[str, Any]] = {
    "llama3_8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
    },
    "tiny": {
        "vocab_size": 49152,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
    },
}
RANK = 16
VARIANTS = {
    "lora": [],
    "lora, selective": ["model.gradient_checkpointing=selective"],
    "lora, full": ["model.gradient_checkpointing=full"],
    "qlora": ["model.quantization=nf4"],
}


def overrides(shape: str, length: int, rows: int) -> list[str]:
    settings = ",".join(f"{key}:{value}" for key, value in {"model_type": "llama", **SHAPES[shape]}.items())
    batch = [f"data.max_length={length}", f"data.global_batch={rows}", f"data.micro_batch={rows}"]
    return ["name=arm", f"+model.random_init={{{settings}}}", f"adapter.r={RANK}", "data.loss_on=all", *batch]


def flops(shape: str, tokens: int, targets: int) -> float:
    s = SHAPES[shape]
    hidden, inner = s["hidden_size"], s["intermediate_size"]
    keys = hidden * s["num_key_value_heads"] // s["num_attention_heads"]
    linears = [(hidden, hidden)] * 2 + [(hidden, keys)] * 2 + [(hidden, inner)] * 2 + [(inner, hidden)]
    base = s["num_hidden_layers"] * sum(a * b for a, b in linears)
    adapter = s["num_hidden_layers"] * sum(RANK * (a + b) for a, b in linears)
    return tokens * (4.0 * base + 6.0 * adapter) + targets * 4.0 * hidden * s["vocab_size"]


def matmul_rate(device: str, size: int) -> float:
    """bfloat16 FLOP/s of a large square matmul."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2.0 * size**3 / _median_seconds(lambda: a @ b)


def bandwidth(device: str, num_bytes: int) -> float:
    """Bytes a second of a copy, read and written."""
    source = torch.empty(num_bytes, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2.0 * num_bytes / _median_seconds(lambda: target.copy_(source))


def _median_seconds(work: Callable[[], object]) -> float:
    times = []
    for number in range(13):
        synchronize()
        began = time.perf_counter()
        work()
        synchronize()
        if number >= 3:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> int:
    parser = measure.parser(__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="llama3_8b")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5, help="steps a block")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    args = parser.parse_args()
    if args.arm:
        arms.ours(Turns(), args.steps, [*overrides(args.shape, args.length, args.rows), *VARIANTS[args.arm]])
        return 0
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rate = matmul_rate(device, 8192 if device == "cuda" else 512)
    stream = bandwidth(device, 2**31 if device == "cuda" else 2**27)
    rows, measured = [], {}
    options = [f"--shape={args.shape}", f"--length={args.length}", f"--rows={args.rows}", f"--steps={args.steps}"]
    for variant in args.variants:
        with Arm("benchmarks.gpu_step", variant, *options) as arm:
            arm.run()
            blocks = [arm.run() for _ in range(args.blocks)]
        require(min(min(b["grad_norms"]) for b in blocks) > 0, f"{variant}: gradient norms must be above zero")
        speed = statistics.median(b["tokens"] / b["seconds"] for b in blocks)
        share = statistics.median(flops(args.shape, b["tokens"], b["targets"]) / b["seconds"] for b in blocks) / rate
        memory = max(b["peak_memory_bytes"] for b in blocks)
        rows.append([variant, f"{speed:,.0f}", f"{memory / 1e9:.1f}", f"{share:.1%}"])
        measured[variant] = {"tokens_per_second": speed, "share_of_matmul_rate": share, "blocks": blocks}
    card = {"matmul_flops_per_second": rate, "bandwidth_bytes_per_second": stream}
    columns = ["variant", "tokens/s", "peak GB", f"share of {rate / 1e12:.3g} TFLOP/s"]
    return report("gpu_step", args, columns, rows, [], card=card, measured=measured)


if __name__ == "__main__":
    sys.exit(main())
