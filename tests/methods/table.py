"""PYTHONPATH=tests/engine:tests/methods:. python -m tests.methods.table: writes what the tests run into the docs."""

from pathlib import Path

from distft.config.reading.folders import conf_dir
from distft.config.reading.help import header
from distft.config.sections.peft_traits import UNFIT
from tests.methods import method_cases as cases
from tests.methods import methods
from tests.methods.families import FAMILIES

PLACE = Path(__file__).parents[2] / "docs" / "methods.md"
README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- methods: made by tests/methods/table.py -->\n", "<!-- end of methods -->\n"
HEAD = """\
# Methods

Made by `PYTHONPATH=tests/engine:tests/methods:. python -m tests.methods.table`; a test compares it with the methods.
Every tick is a run of two steps in `tests/methods`: what should train gets a gradient and moves, nothing else moves,
gradients on two ranks are those of one, and a saved run goes on as if it had not stopped (on two ranks: the NF4 ones,
of which under `zero3` those of `causal_lm`).
`-`: the config or the model refuses it; the reason stands below.

{tables}## Refused

{reasons}
## Methods of PEFT that do not fit

| method | why |
| --- | --- |
{unfit}"""


def text() -> str:
    reasons: dict[str, list[str]] = {}
    tables = ""
    for family in FAMILIES:
        tables += f"## `{family}`: the options of the group `adapter`\n\n{_table(family, reasons, files=True)}\n"
        tables += f"## `{family}`: `adapter.method=NAME` with PEFT's defaults\n\n"
        tables += f"{_table(family, reasons, files=False)}\n"
    told = "".join(f"* {', '.join(cells)}: {reason}\n" for reason, cells in reasons.items())
    unfit = "".join(f"| `{name}` | {why} |\n" for name, why in sorted(UNFIT.items()))
    return HEAD.format(tables=tables, reasons=told, unfit=unfit)


def summary() -> str:
    """The README's form: of each task family the options that are refused, everywhere or on an engine or base."""
    cells = methods.cells("causal_lm", "lora")
    axes = [*methods.BASES, *methods.ENGINES]
    lines = [f"| task family | refused everywhere | {' | '.join(f'{axis} besides' for axis in axes)} |"]
    lines.append("| --- " * (len(axes) + 2) + "|")
    for family in FAMILIES:
        refused = {cell: _refused(family, *cell) for cell in cells}
        everywhere = set.intersection(*refused.values())
        besides = {axis: set.intersection(*(refused[c] for c in cells if axis in c)) - everywhere for axis in axes}
        told = {cell: everywhere.union(*(besides[axis] for axis in cell)) for cell in cells}
        assert told == refused, "refused for an engine with a base: the table has no column for that"
        found = [everywhere, *besides.values()]
        lines.append(
            f"| `{family}` | {' | '.join(' '.join(f'`{n}`' for n in sorted(names)) or '-' for names in found)} |"
        )
    return "\n".join(lines) + "\n"


def _refused(family: str, engine: str, base: str) -> set[str]:
    return {
        name
        for name, section in methods.shipped(family).items()
        if methods.refusals(cases.config(section, engine, methods.BASES[base], family))
    }


def in_readme(text: str) -> str:
    """The README with the summary between its marks."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + summary() + END + rest.split(END)[1]


def _table(family: str, reasons: dict[str, list[str]], *, files: bool) -> str:
    sections = methods.shipped(family) if files else methods.unshipped(family)
    cells = methods.cells(family, next(iter(sections)))
    columns = " | ".join(f"{engine} {base}" for engine, base in cells)
    lines = [
        f"| {'option' if files else 'method'} | {columns} |{' what it is |' if files else ''}",
        "| --- " * (len(cells) + 1 + files) + "|",
    ]
    for name, section in sections.items():
        marks = []
        for engine, base in cells:
            refused = methods.refusals(cases.config(section, engine, methods.BASES[base], family))
            marks.append("-" if refused else "✓")
            for sentence in refused:
                reasons.setdefault(sentence, []).append(f"{family} `{name}` {engine} {base}")
        about = f" {header(conf_dir() / 'adapter' / f'{name}.yaml')} |" if files else ""
        lines.append(f"| `{name}` | {' | '.join(marks)} |{about}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PLACE.parent.mkdir(exist_ok=True)
    PLACE.write_text(text(), encoding="utf-8")
    README.write_text(in_readme(README.read_text(encoding="utf-8")), encoding="utf-8")
