"""DPO on generated pairs: a polite ending is preferred to a rude one, and the model has to see it on unseen prompts.

    python -m benchmarks.preference

A pair is an exchange of the embedded dialogues whose reply ends politely (chosen) or rudely (rejected). The prompts
that are measured on are not trained on. Before training the margin is 0: the model is its own reference.
"""

import json
import random
import sys
import tempfile
from pathlib import Path

from benchmarks import measure
from benchmarks.measure import Target, report
from benchmarks.outcomes import evaluations, exchanges

POLITE = ["I hope that helps.", "Thank you for asking.", "Please ask me anything else.", "It is a pleasure to help."]
RUDE = ["Now go away.", "What a stupid question.", "Stop wasting my time.", "Nobody cares what you think."]


def write_pairs(file: Path, said: list[tuple[str, str]], seed: int) -> Path:
    draw = random.Random(seed)
    rows = [
        {
            "prompt": f"Q: {first}\nA:",
            "chosen": f" {reply} {draw.choice(POLITE)}",
            "rejected": f" {reply} {draw.choice(RUDE)}",
        }
        for first, reply in said
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def main() -> int:
    parser = measure.parser(__doc__)
    parser.add_argument("--loss", nargs="+", default=["dpo"], help="values of task.loss")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=80, help="pairs that are trained on")
    parser.add_argument("--held-out", type=int, default=40, help="pairs that are measured on")
    parser.add_argument("--overrides", nargs="*", default=[])
    args = parser.parse_args()
    said = exchanges(most_characters=100, seed=0)[: args.pairs + args.held_out]
    rows, targets, measured = [], [], {}
    with tempfile.TemporaryDirectory() as folder:
        train = write_pairs(Path(folder) / "train.jsonl", said[args.held_out :], seed=1)
        held_out = write_pairs(Path(folder) / "eval.jsonl", said[: args.held_out], seed=2)
        data = [
            f"data.train={train}",
            f"data.eval={held_out}",
            "data.eval_fraction=0",
            f"data.cache_dir={folder}/cache",
        ]
        shape = ["data.max_length=256", "data.global_batch=2", f"steps={args.steps}", "optim.lr=1e-3", "optim.warmup=2"]
        for loss in args.loss:
            words = ["+exp=preference", f"task.loss={loss}", *data, *shape, *args.overrides]
            before, *_, after = measured[loss] = evaluations(words)
            rows.append(
                [loss, *(f"{row[key]:.3f}" for key in ("margin", "accuracy", "loss") for row in (before, after))]
            )
            targets += [
                Target(f"{loss}: accuracy on held-out pairs", after["accuracy"], 0.9, at_least=True),
                Target(f"{loss}: rise of the margin", after["margin"] - before["margin"], 0.1, at_least=True),
            ]
    columns = ["loss", "margin before", "after", "accuracy before", "after", "loss before", "after"]
    return report("preference", args, columns, rows, targets, evaluations=measured)


if __name__ == "__main__":
    sys.exit(main())
