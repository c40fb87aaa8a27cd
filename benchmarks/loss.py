"""distft.task.loss against F.cross_entropy on the full logits: time of forward and backward pass, peak memory.

python -m benchmarks.loss
"""

import argparse
import sys

import torch
import torch.nn.functional as F

from benchmarks import measure
from benchmarks.measure import Arm, Target, Turns, interleave, paired_ratio, peak_memory_bytes, report, require
from distft.task.loss import token_loss

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}


def arm(name: str, dtype: torch.dtype, args: argparse.Namespace) -> None:
    turns = Turns()
    device = torch.device(args.device)
    torch.manual_seed(0)
    hidden = torch.randn(args.tokens, args.hidden, dtype=dtype, device=device).requires_grad_()
    weight = torch.empty(args.vocabulary, args.hidden, dtype=dtype, device=device).normal_(std=args.hidden**-0.5)
    targets = torch.randint(args.vocabulary, (args.tokens,), device=device)
    # Loads the libraries' code and makes their threads, which is no memory of the loss.
    torch.autograd.grad(token_loss(hidden[:8], weight[:8], targets[:8] % 8), hidden)
    before = peak_memory_bytes()

    def block() -> dict[str, float]:
        if name == "ours":
            loss = token_loss(hidden, weight, targets)
        else:
            loss = F.cross_entropy((hidden @ weight.t()).float(), targets, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, hidden)
        return {
            "loss": loss.item(),
            "grad_norm": gradient.double().norm().item(),
            "memory_bytes": peak_memory_bytes() - before,
        }

    turns.serve(block)


def main() -> int:
    parser = measure.parser(__doc__)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=128256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    args = parser.parse_args()
    if args.arm:
        arm(args.arm, DTYPES[args.dtypes[0]], args)
    rows, targets, measured = [], [], {}
    for dtype in args.dtypes:
        shape = [f"--{key}={getattr(args, key)}" for key in ("tokens", "hidden", "vocabulary", "device")]
        options = [*shape, f"--dtypes={dtype}"]
        with Arm("benchmarks.loss", "ours", *options) as a, Arm("benchmarks.loss", "full_logits", *options) as b:
            ours, theirs = interleave(a, b, blocks=args.blocks)
        for left, right in zip(ours, theirs, strict=True):
            for key in ("loss", "grad_norm"):
                message = f"{dtype}: {key} must agree and be above zero, got {left[key]} and {right[key]}"
                require(left[key] > 0 and abs(left[key] - right[key]) <= TOLERANCE[dtype] * right[key], message)
        ratio = paired_ratio([r["seconds"] for r in ours], [r["seconds"] for r in theirs])
        memory = [max(r["memory_bytes"] for r in side) / 1e9 for side in (ours, theirs)]
        seconds = [sorted(r["seconds"] for r in side)[len(side) // 2] for side in (ours, theirs)]
        rows.append([dtype, *(f"{s:.2f}" for s in seconds), str(ratio), *(f"{m:.3f}" for m in memory)])
        targets += [Target(f"{dtype}: time", ratio.median, 1.0), Target(f"{dtype}: memory in GB", memory[0], 0.4)]
        measured[dtype] = {"ratio": ratio, "ours": ours, "full_logits": theirs}
    columns = ["dtype", "ours s", "full logits s", "ratio (quartiles)", "ours GB", "full logits GB"]
    return report("loss", args, columns, rows, targets, measured=measured)


if __name__ == "__main__":
    sys.exit(main())
