"""`python -m distft.data +exp=NAME [rows=3]`: the first rows of a run as the model sees them."""

from typing import TYPE_CHECKING

from pydantic import PositiveInt
from rich.console import Console
from rich.panel import Panel
from rich.table import Column, Table
from rich.text import Text

from distft.config import schema
from distft.config.reading import compose

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from distft.data.corpus import Corpus
    from distft.data.pack import Rows

SUPERVISED, CONTEXT = "bold green", "dim"


class Viewer(schema.Section):
    rows: PositiveInt = 3
    """Rows to show."""


def main(argv: list[str]) -> None:
    config, own = compose.load_with(argv, Viewer, program="distft.data")
    show(config, own.rows, Console(highlight=False))


def show(config: schema.Config, num_rows: int, console: Console) -> None:
    """Print the counts of each split, then the first rows of the first epoch with their supervised tokens coloured."""
    # Late, so that a config error answers without importing torch.
    from distft.data.loader import permutation
    from distft.data.pack import plan
    from distft.data.prepare import prepare
    from distft.model.tokenizer import load_tokenizer
    from distft.task import build as tasks

    data = config.data
    tokenizer = load_tokenizer(config.model, data.chat_template)
    prepared = prepare(data, tasks.build(config.task).reader(tokenizer, data, None))
    splits = {"train": prepared.train} | ({"eval": prepared.eval} if prepared.eval else {})
    plans = {name: plan(corpus.lengths, data.max_length, data.packing) for name, corpus in splits.items()}
    console.print(_figures(splits, plans, data.max_length))
    console.print(f"cache {prepared.folder}\n")
    console.print(Text.assemble("Below: ", ("supervised tokens", SUPERVISED), ", ", ("context", CONTEXT)))
    corpus, rows = prepared.train, plans["train"]
    for row in permutation(config.seed, 0, len(rows))[:num_rows]:
        documents = [_coloured(corpus, i, tokenizer) for i in rows[row]]
        tokens, targets = corpus.lengths[rows[row]].sum(), corpus.target_counts[rows[row]].sum()
        title = f"row {row}: {len(documents)} documents, {tokens:,} tokens, {targets:,} targets"
        console.print(Panel(Text.assemble(("\n────\n", "red")).join(documents), title=title))


def _figures(splits: "dict[str, Corpus]", plans: "dict[str, Rows]", max_length: int) -> Table:
    reasons = dict.fromkeys(reason for corpus in splits.values() for reason in corpus.counts.dropped)
    columns = [
        [
            f"{corpus.counts.rows:,}",
            f"{corpus.counts.duplicates:,}",
            *(f"{corpus.counts.dropped.get(reason, 0):,}" for reason in reasons),
            f"{corpus.counts.truncated:,}",
            f"{corpus.num_documents:,}",
            f"{corpus.num_tokens:,}",
            f"{corpus.num_targets:,}",
            f"{len(plans[name]):,}",
            f"{corpus.num_tokens / len(plans[name]) / max_length:.1%}",
        ]
        for name, corpus in splits.items()
    ]
    dropped = [f"dropped: {reason}" for reason in reasons]
    labels = ["rows read", "duplicates", *dropped, "truncated", "documents", "tokens", "targets", "packed rows", "fill"]
    table = Table("", *(Column(name, justify="right") for name in splits), box=None)
    for cells in zip(labels, *columns, strict=True):
        table.add_row(*cells)
    return table


def _coloured(corpus: "Corpus", i: int, tokenizer: "PreTrainedTokenizerFast") -> Text:
    """The document decoded; tokens that somebody must predict, or that have a class, stand out.

    Where labels are the document's, they stand behind it.
    """
    ids, targets = corpus.document(i)
    if not corpus.layout.per_token:
        labels = " ".join(f"{label:g}" for label in targets.tolist())
        return Text.assemble((str(tokenizer.decode(ids)), CONTEXT), (f"  labels {labels}", SUPERVISED))
    shifted = corpus.layout.labels == "next_token"
    supervised = [False, *(targets[:-1] >= 0).tolist()] if shifted else (targets >= 0).tolist()
    text = Text()
    start = 0
    for end in range(1, len(ids) + 1):  # by runs: one token alone may be half a character
        if end == len(ids) or supervised[end] != supervised[start]:
            text.append(str(tokenizer.decode(ids[start:end])), style=SUPERVISED if supervised[start] else CONTEXT)
            start = end
    return text
