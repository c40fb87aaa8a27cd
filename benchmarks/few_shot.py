"""The topic of a conversation, asked of SmolLM2 in words: without shots, with eight, and after tuning; in one table.

    python -m benchmarks.few_shot

Rows, prompt and label words are the same for all: distft.evaluate asks the base and the tuned adapter alike.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import labelled_corpus, measure
from benchmarks.measure import Target, report
from distft.fewshot.prompt import Prompt

TEXT = (
    "{% for shot in shots %}\nConversation: {{ shot.text | truncate(200) }}\nTopic: {{ shot.answer }}\n\n{% endfor %}\n"
    "Conversation: {{ text | truncate(200) }}\nTopic:"
)
WORDS = {
    "tech_support": "computer problems",
    "trivia": "trivia",
    "coding": "programming",
    "ai": "artificial intelligence",
    "psychology": "psychology",
    "emotion": "feelings",
    "literature": "books",
    "money": "money",
}
SHOTS = 8


def main() -> int:
    parser = measure.parser(__doc__)
    parser.add_argument("--most", type=int, default=60, help="rows of a topic")
    parser.add_argument("--steps", type=int, default=16, help="of 1,024 tokens")
    args = parser.parse_args()
    train, held_out = labelled_corpus.split(labelled_corpus.topics(args.most), 0.25)
    prompt = Prompt("topic.jinja", TEXT, "label", WORDS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "topic.jinja").write_text(TEXT)
        texts = prompt.render(train, [])
        said = [
            {"prompt": text, "completion": " " + prompt.word(row["label"])}
            for text, row in zip(texts, train, strict=True)
        ]
        _run(
            "distft.train",
            "+exp=llama_lora",
            "name=topics",
            f"run_root={folder}",
            f"data.train={labelled_corpus.write(folder / 'prompts.jsonl', said)}",
            "data.eval_fraction=0",
            "data.deduplicate=false",
            "data.max_length=128",
            "data.global_batch=8",
            f"data.cache_dir={folder / 'cache'}",
            "evaluation.samples=0",
            f"steps={args.steps}",
        )
        _run(
            "distft.evaluate",
            f"run={folder / 'topics'}",
            f"prompt={folder / 'topic.jinja'}",
            f"shots=[0,{SHOTS}]",
            f"data.train={labelled_corpus.write(folder / 'train.jsonl', train)}",
            f"data.eval={labelled_corpus.write(folder / 'eval.jsonl', held_out)}",
            "answers.words={" + ", ".join(f"{label}: {word}" for label, word in WORDS.items()) + "}",
        )
        result = json.loads((folder / "topics" / "fewshot.json").read_text())
    accuracy = {(row["model"], row["shots"]): row["accuracy"] for row in result["rows"]}
    table = [
        [row["model"], str(row["shots"]), *(f"{row[name]:.3f}" for name in ("accuracy", "macro_f1", "loss"))]
        for row in result["rows"]
    ]
    best_base = max(accuracy["base", 0], accuracy["base", SHOTS])
    targets = [
        Target(f"accuracy with {SHOTS} shots over none", accuracy["base", SHOTS] - accuracy["base", 0], 0, True),
        Target("accuracy tuned over the base's best", accuracy["topics", 0] - best_base, 0.05, True),
    ]
    more = {"held_out": len(held_out), "trained_on": len(train)}
    return report("few_shot", args, ["model", "shots", "accuracy", "macro F1", "loss"], table, targets, **more)


def _run(module: str, *words: str) -> None:
    subprocess.run([sys.executable, "-m", module, *words], check=True)


if __name__ == "__main__":
    sys.exit(main())
