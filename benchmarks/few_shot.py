"""Labels asked of SmolLM2 in words: without shots, with eight, and after tuning; a table for each of two tasks.

    python -m benchmarks.few_shot

The topic of an English conversation (eight topics), and its language (thirteen). Rows, prompt and label words are the
same for all: distft.evaluate asks the base and the tuned adapter alike.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import labelled_corpus, measure
from benchmarks.labelled_corpus import LANGUAGES, Rows
from benchmarks.measure import Target, report
from distft.evaluate.fewshot.prompt_template import Prompt

SHOTS = 8


@dataclass(frozen=True)
class Question:
    rows: Callable[[int], Rows]
    """At most so many of a label."""
    text: str
    words: dict[str, str]


def _text(name: str, most_characters: int) -> str:
    shown = f"{{{{ %s | truncate({most_characters}) }}}}"
    shot = f"\nConversation: {shown % 'shot.text'}\n{name}: {{{{ shot.answer }}}}\n\n"
    return f"{{% for shot in shots %}}{shot}{{% endfor %}}\nConversation: {shown % 'text'}\n{name}:"


QUESTIONS = {
    "topic": Question(
        labelled_corpus.topics,
        _text("Topic", 200),
        {
            "tech_support": "computer problems",
            "trivia": "trivia",
            "coding": "programming",
            "ai": "artificial intelligence",
            "psychology": "psychology",
            "emotion": "feelings",
            "literature": "books",
            "money": "money",
        },
    ),
    # Some scripts take three tokens a letter.
    "language": Question(
        labelled_corpus.languages, _text("Language", 40), {name: name.capitalize() for name in LANGUAGES}
    ),
}


def main() -> int:
    parser = measure.parser(__doc__)
    parser.add_argument("--questions", nargs="+", choices=QUESTIONS, default=list(QUESTIONS))
    parser.add_argument("--most", type=int, default=480, help="rows of all labels")
    parser.add_argument("--steps", type=int, default=16, help="of 1,024 tokens")
    args = parser.parse_args()
    table, targets, more = [], [], {}
    for name in args.questions:
        question = QUESTIONS[name]
        train, held_out = labelled_corpus.split(question.rows(args.most // len(question.words)), 0.25)
        rows = ask(question, train, held_out, args.steps)
        accuracy = {(row["model"], row["shots"]): row["accuracy"] for row in rows}
        for row in rows:
            numbers = [f"{row[key]:.3f}" for key in ("accuracy", "macro_f1", "loss")]
            table.append([name, "tuned" if row["model"] != "base" else "base", str(row["shots"]), *numbers])
        best_base = max(accuracy["base", 0], accuracy["base", SHOTS])
        gain = accuracy["tuned", 0] - best_base
        targets.append(Target(f"{name}: accuracy tuned over the base's best", gain, 0.05, at_least=True))
        more[name] = {"held_out": len(held_out), "trained_on": len(train), "rows": rows}
    columns = ["question", "model", "shots", "accuracy", "macro F1", "loss"]
    return report("few_shot", args, columns, table, targets, **more)


def ask(question: Question, train: Rows, held_out: Rows, steps: int) -> list[dict[str, Any]]:
    """Tunes on the prompts with their answers, and asks base and tuned model, without shots and with some."""
    prompt = Prompt("question.jinja", question.text, "label", question.words)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "question.jinja").write_text(question.text)
        texts = prompt.render(train, [])
        said = [
            {"prompt": text, "completion": " " + prompt.word(row["label"])}
            for text, row in zip(texts, train, strict=True)
        ]
        _run(
            "distft.train",
            "+exp=llama_lora",
            "name=tuned",
            f"run_root={folder}",
            f"data.train={labelled_corpus.write(folder / 'prompts.jsonl', said)}",
            "data.eval_fraction=0",
            "data.deduplicate=false",
            "data.max_length=128",
            "data.global_batch=8",
            f"data.cache_dir={folder / 'cache'}",
            "evaluation.samples=0",
            f"steps={steps}",
        )
        _run(
            "distft.evaluate",
            f"run={folder / 'tuned'}",
            f"prompt={folder / 'question.jinja'}",
            f"shots=[0,{SHOTS}]",
            f"data.train={labelled_corpus.write(folder / 'train.jsonl', train)}",
            f"data.eval={labelled_corpus.write(folder / 'eval.jsonl', held_out)}",
            "answers.words={" + ", ".join(f"{label}: {word}" for label, word in question.words.items()) + "}",
        )
        found: list[dict[str, Any]] = json.loads((folder / "tuned" / "fewshot.json").read_text())["rows"]
    return found


def _run(module: str, *words: str) -> None:
    subprocess.run([sys.executable, "-m", module, *words], check=True)


if __name__ == "__main__":
    sys.exit(main())
