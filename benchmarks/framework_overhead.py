"""The loop of distft against a bare PyTorch loop over the same modules and the same packed batches.

    python -m benchmarks.framework_overhead

Ours deals rows, watches gradients, agrees with the other ranks, writes metrics.jsonl, the console and report.html.
The bare loop has its batches in memory and does forward, backward, clip and step.
"""

import sys

import torch

from benchmarks import arms, measure
from benchmarks.measure import Arm, Target, Turns, interleave, paired_ratio, report, require_same_work
from distft.model.adapter import saved
from distft.train.loop import Run

LIMIT = 1.02


def bare(turns: Turns, steps: int, overrides: list[str]) -> None:
    def body(run: Run) -> None:
        task, optim, device = run.engine.task, run.config.optim, run.group.device  # type: ignore[attr-defined]
        parameters = list(saved.trainable(task.model).values())
        optimizer = torch.optim.AdamW(parameters, lr=optim.lr, weight_decay=optim.weight_decay)
        task.train()
        batches = [(list(run.loader.micro_batches(k)), run.loader.target_tokens(k)) for k in range(200)]
        step = 0
        while True:
            turns.wait()
            losses, grad_norms, tokens = [], [], 0
            for micro_batches, targets in batches[step : step + steps]:
                total = 0.0
                for batch in micro_batches:
                    loss = task(batch.to(device)) / targets
                    loss.backward()
                    total += loss.item()
                    tokens += batch.num_tokens
                norm = torch.nn.utils.clip_grad_norm_(parameters, optim.max_grad_norm or float("inf"))
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                losses.append(total)
                grad_norms.append(norm.item())
            step += steps
            turns.done({"losses": losses, "grad_norms": grad_norms, "tokens": tokens})

    arms.run_loop(overrides, body)


def main() -> int:
    parser = measure.parser(__doc__)
    parser.add_argument("--steps", type=int, default=2, help="steps a block")
    parser.add_argument("--overrides", nargs="*", default=[], help="config overrides for both sides")
    parser.set_defaults(blocks=5)
    args = parser.parse_args()
    overrides = ["name=arm", "optim.schedule=constant", "optim.warmup=0", "data.micro_batch=2", *args.overrides]
    if args.arm:
        {"ours": arms.ours, "bare": bare}[args.arm](Turns(), args.steps, overrides)
        return 0
    options = [f"--steps={args.steps}", "--overrides", *args.overrides]
    module = "benchmarks.framework_overhead"
    with Arm(module, "ours", *options) as a, Arm(module, "bare", *options) as b:
        ours, theirs = interleave(a, b, args.blocks)
    require_same_work(ours, theirs, tolerance=1e-3)
    ratio = paired_ratio([r["seconds"] for r in ours], [r["seconds"] for r in theirs])
    cpu_ratio = paired_ratio([r["cpu_seconds"] for r in ours], [r["cpu_seconds"] for r in theirs])
    rates = [sum(r["tokens"] for r in side) / sum(r["seconds"] for r in side) for side in (ours, theirs)]
    rows = [[*(f"{rate:.0f}" for rate in rates), str(ratio), str(cpu_ratio)]]
    columns = ["ours tok/s", "bare tok/s", "time ratio (quartiles)", "CPU time ratio"]
    targets = [Target("time against the bare loop", ratio.median, LIMIT)]
    return report("framework_overhead", args, columns, rows, targets, ratio=ratio, ours=ours, bare=theirs)


if __name__ == "__main__":
    sys.exit(main())
