"""The console of a run: its plan, then a progress bar (or, in a log file, plain lines), then a summary."""

import re
import sys
import time
from collections import deque
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from distft.tracking import metrics
from distft.tracking.seam import Lines, Row, RunInfo, Sample, Summary

PLAIN_SECONDS = 10.0
"""Least time between two plain lines of training steps."""
SPEED_STEPS = 50
"""Steps over which the time left is measured; evaluations and checkpoints between them count."""
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
STATUS_STYLE = {"finished": "bold green", "stopped": "bold yellow", "failed": "bold red"}


class ConsoleTracker:
    """Writes for a person: with a progress bar on a terminal, without control characters anywhere else."""

    def __init__(self, file: TextIO | None = None):
        file = file or sys.stdout
        interactive = file.isatty()
        width = None if interactive else 80
        self._console = Console(file=file, force_terminal=interactive, width=width, highlight=False, markup=False)
        self._progress: Progress | None = None
        self._rows: list[Row] = []
        self._recent: deque[tuple[int, float]] = deque(maxlen=SPEED_STEPS)
        self._last: Row | None = None
        self._printed = (0, float("-inf"))  # step and time of the last plain line

    def start(self, info: RunInfo) -> None:
        self._info = info
        self._rows = [row for row in metrics.read(info.run_dir / metrics.FILE) if row["split"] == "eval"]
        self._console.print(Rule(visible(info.name), style="dim"))
        self._lines(info.plan)
        self._console.print()
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._progress = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[numbers]}"),
                console=self._console,
                expand=True,
                refresh_per_second=4,
                transient=True,
            )
            self._task = self._progress.add_task("", total=info.num_steps, completed=info.first_step, numbers="")
            self._progress.start()

    def log(self, row: Row) -> None:
        if row["split"] == "eval":
            self._rows.append(row)
            self._print(self._evaluation(row))
            return
        now = time.monotonic()
        self._recent.append((row["step"], now))
        self._last = row
        if self._progress:
            self._progress.update(self._task, completed=row["step"], numbers=self._numbers(row))
            return
        first_or_last = row["step"] in (self._info.first_step + 1, self._info.num_steps)
        if first_or_last or now - self._printed[1] >= PLAIN_SECONDS:
            self._plain(row)

    def close(self, summary: Summary) -> None:
        if self._progress:
            self._progress.stop()
        if self._last and self._printed[0] != self._last["step"]:
            self._plain(self._last)
        self._console.print()
        style = STATUS_STYLE[summary.status]
        self._console.print(Rule(Text(f"{visible(self._info.name)}: {summary.status}", style=style), style="dim"))
        self._lines(metrics.outcome(self._rows) + summary.lines)
        if summary.samples:
            self._console.print()
            self._console.print(samples_table(summary.samples))
        if summary.next_commands:
            self._console.print()
            for command in summary.next_commands:
                self._console.print(Text("  " + visible(command)), soft_wrap=True)  # never broken: it is to be copied

    def _plain(self, row: Row) -> None:
        self._printed = (row["step"], time.monotonic())
        self._print(f"{self._step(row)}  {self._numbers(row)}")

    def _print(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)

    def _lines(self, lines: Lines) -> None:
        """Label and text in two columns; long text is folded under itself."""
        width = max((len(label) for label, _ in lines), default=0)
        room = max(self._console.width - width - 2, 20)
        for label, text in lines:
            folded = Text(visible(text)).wrap(self._console, room, overflow="fold")
            for number, part in enumerate(folded):
                head = Text(f"{label if number == 0 else '':<{width}}  ", style="cyan")
                part.rstrip()
                self._console.print(head + part, soft_wrap=True)

    def _step(self, row: Row) -> str:
        return f"step {row['step']:>{len(str(self._info.num_steps))}}/{self._info.num_steps}"

    def _numbers(self, row: Row) -> str:
        parts = [f"loss {number(row.get('loss'), '.4f')}", f"{number(row.get('tokens_per_second'), ',.0f')} tok/s"]
        return "  ".join([*parts, f"{duration(self._seconds_left(row))} left"])

    def _evaluation(self, row: Row) -> str:
        losses = [r["loss"] for r in self._rows if r.get("loss") is not None]
        text = f"{self._step(row)}  eval loss {number(row.get('loss'), '.4f')}"
        if len(losses) > 1 and row.get("loss") is not None and losses[0]:
            text += f" ({100 * (row['loss'] / losses[0] - 1):+.1f} %{', best' if row['loss'] <= min(losses) else ''})"
        others = {key: value for key, value in row.items() if key not in ("step", "split", "loss", "time")}
        return "  ".join([text, *(f"{key} {number(value, '.4g')}" for key, value in others.items())])

    def _seconds_left(self, row: Row) -> float | None:
        (first, begin), (last, end) = self._recent[0], self._recent[-1]
        seconds = (end - begin) / (last - first) if last > first else row.get("step_seconds")
        return None if seconds is None else (self._info.num_steps - row["step"]) * seconds


def samples_table(samples: list[Sample]) -> Table:
    """Prompt, reply before and reply after, side by side."""
    table = Table(show_lines=True, expand=True, header_style="bold")
    for column, ratio in (("prompt", 3), ("before", 4), ("after", 4)):
        table.add_column(column, ratio=ratio, overflow="fold")
    for sample in samples:
        table.add_row(*(Text(visible(text.strip())) for text in (sample.prompt, sample.before, sample.after)))
    return table


def visible(text: str) -> str:
    r"""The text with control characters spelt out (`\x1b`): no words of a model may drive the terminal."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text.expandtabs(4))


def number(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else "-" if value is None else visible(str(value))


def duration(seconds: float | None) -> str:
    """Seconds as `0:42`, `1:02:03` or `3d 04h`."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24}d {hours % 24:02d}h"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
