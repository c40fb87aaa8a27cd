"""SmolLM2 teaches a student of its first four blocks, against the same student without the teacher at equal steps.

    python -m benchmarks.distillation

Same blocks at the start, same rows, same order, same learning rate; compared is the held-out cross-entropy of a token,
which the student without a teacher minimises itself.
"""

import sys

from benchmarks import measure
from benchmarks.measure import Target, report
from benchmarks.outcomes import evaluations


def main() -> int:
    parser = measure.parser(__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--kl-weight", type=float, nargs="+", default=[0.5])
    parser.add_argument("--overrides", nargs="*", default=[], help="config overrides for both sides")
    args = parser.parse_args()
    common = [
        "+exp=distillation",
        f"steps={args.steps}",
        f"optim.lr={args.lr}",
        "data.max_length=256",
        "data.global_batch=4",
        "data.eval_fraction=0.1",
        *args.overrides,
    ]
    alone = evaluations([*common, "task=causal_lm"])
    rows = [["alone", f"{alone[0]['loss']:.4f}", f"{alone[-1]['loss']:.4f}", "-"]]
    targets, measured = [], {"alone": alone}
    for weight in args.kl_weight:
        taught = measured[f"taught, kl_weight={weight:g}"] = evaluations([*common, f"task.kl_weight={weight}"])
        figures = [taught[0]["cross_entropy"], taught[-1]["cross_entropy"], taught[-1]["kl"]]
        rows.append([f"taught, kl_weight={weight:g}", *(f"{figure:.4f}" for figure in figures)])
        claim = f"held-out cross-entropy taught (kl_weight={weight:g}) over alone"
        targets.append(Target(claim, taught[-1]["cross_entropy"] / alone[-1]["loss"], 1.0))
    columns = ["student", "cross-entropy before", "after", "KL from the teacher after"]
    return report("distillation", args, columns, rows, targets, evaluations=measured)


if __name__ == "__main__":
    sys.exit(main())
