"""The tables of results that people read on the console, one for each kind of result."""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from distft.evaluate.results import Ensemble, Evaluation, FewShot, LmEval, Numbers
from distft.tracking.console import number, samples_table, visible
from distft.tracking.seam import Sample


def print_evaluation(result: Evaluation, file: Path) -> None:
    """Base and trained side by side, their replies, and what was measured on what."""
    console, base, trained, data = _console(), result.base, result.trained, result.data
    table = _table([""], ["base", "trained", "change"], f"{result.run}: {data.documents:,} held-out documents")
    for name in base:
        form = ",.2f" if name == "perplexity" else ".4f"
        change = f"{100 * (trained[name] / base[name] - 1):+.1f} %" if base[name] else "-"
        table.add_row(name, format(base[name], form), format(trained[name], form), change)
    console.print(table)
    if result.samples:
        console.print()
        shown = samples_table([Sample(each.prompt, each.reference, each.base, each.trained) for each in result.samples])
        shown.columns[1].header, shown.columns[2].header = "base", "trained"
        console.print(shown)
    console.print()
    for label, text in (
        ("weights", result.weights),
        ("data", f"{data.source}, {data.target_tokens:,} target tokens"),
        ("written", str(file)),
    ):
        console.print(visible(f"{label:<8}  {text}"), soft_wrap=True)


def print_ensemble(result: Ensemble) -> None:
    """A line for each member, and one for all together."""
    names = _names(result.numbers.values())
    table = _table([""], names, f"{result.documents:,} held-out documents")
    for member, numbers in result.numbers.items():
        table.add_row(visible(member), *(number(numbers.get(name), ".4f") for name in names))
    _console().print(table)


def print_few_shot(result: FewShot) -> None:
    """A line for each model with each number of shots."""
    names = _names(row.numbers for row in result.rows)
    title = f"{result.documents:,} labelled rows, {len(result.words)} labels, by {result.scoring}"
    table = _table([""], ["shots", *names], title)
    for row in result.rows:
        values = (number(row.numbers.get(name), ".4f") for name in names)
        table.add_row(visible(row.model), str(row.shots), *values)
    _console().print(table)


def print_lm_eval(result: LmEval) -> None:
    """A line for each metric of each task."""
    table = Table("task", "model", "shots", "metric", "value", box=None, title="lm-eval")
    for row in result.rows:
        for name, value in row.numbers.items():
            if "stderr" not in name:
                told = (str(row.task), row.model, str(row.shots), name.partition(",")[0], number(value, ".4f"))
                table.add_row(*map(visible, told))
    _console().print(table)


def _console() -> Console:
    return Console(highlight=False, markup=False)


def _table(left: list[str], right: list[str], title: str) -> Table:
    return Table(*left, *(Column(name, justify="right") for name in right), box=None, title=title)


def _names(rows: Iterable[Numbers]) -> list[str]:
    """The names of all metrics, each once."""
    return list(dict.fromkeys(name for numbers in rows for name in numbers))
