"""python -m launch.status [RUN or SWEEP ...] [--watch] [--plot]: where runs stand, from what they say themselves.

status.json of each run is the truth; squeue fills in why a job waits, and may be missing.
"""

import csv
import io
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from distft.errors import ConfigError
from distft.run.identity import CONFIG
from distft.run.owner import Card
from distft.run.status import FILE, Status
from distft.runtime import slurm
from distft.runtime.command import run_command
from distft.runtime.files import write_whole
from distft.tracking import metrics
from distft.tracking.console import duration, number, visible
from launch import sweep
from launch.record import FILE as JOB
from launch.record import Record

REFRESH_S = 3.0
OPTIONS = ("--watch", "--plot")
STYLE = {"finished": "green", "running": "cyan", "failed": "red", "hung": "red", "gave_up": "red", "lost": "red"}


@dataclass
class Row:
    """What is shown of a run."""

    run: str
    state: str
    step: int
    steps: int | None
    loss: float | None
    eval_loss: float | None
    tokens_per_second: float | None
    seconds_left: float | None
    restarts: int
    job: str | None
    why: str


def main(argv: list[str]) -> None:
    if unknown := [word for word in argv if word.startswith("-") and word not in OPTIONS]:
        raise ConfigError(f"{unknown[0]}: no such option; options: {', '.join(OPTIONS)}")
    folders = [Path(word) for word in argv if not word.startswith("-")] or [Path("runs")]
    console = Console(highlight=False)
    if "--watch" in argv:
        with Live(console=console, refresh_per_second=2, transient=True) as live:
            rows = rows_of(folders)
            while any(row.state in ("queued", "starting", "running") for row in rows):
                live.update(table(rows))
                time.sleep(REFRESH_S)
                rows = rows_of(folders)
    rows = rows_of(folders)
    console.print(table(rows))
    for folder in folders:
        if (folder / sweep.FILE).exists():
            write_csv(folder, [row for row in rows if (folder / row.run).exists()])
        if "--plot" in argv:
            console.print(f"curves: {plot(folder)}")


def runs_in(folder: Path) -> list[Path]:
    """The run that `folder` is, or the runs in it. Raises ConfigError where there are none."""
    if (folder / sweep.FILE).exists():
        return [folder / point["name"] for point in sweep.read(folder)]
    if any((folder / name).exists() for name in (FILE, JOB, CONFIG)):
        return [folder]
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir()] if folder.is_dir() else []
    found = [run for path in inside if not path.name.startswith(".") for run in _runs_below(path)]
    if not found:
        there = ", ".join(path.name for path in inside) or "nothing"
        raise ConfigError(f"RUN: must be the folder of a run or a sweep, or hold some, got {folder} with {there}")
    return found


def _runs_below(path: Path) -> list[Path]:
    try:
        return runs_in(path)
    except ConfigError:  # a folder of something else
        return []


def rows_of(folders: list[Path]) -> list[Row]:
    """The runs in `folders`; those of a sweep by their best held-out loss."""
    rows: list[Row] = []
    for folder in folders:
        found = [row_of(run) for run in runs_in(folder)]
        if (folder / sweep.FILE).exists():
            found.sort(key=lambda row: float("inf") if row.eval_loss is None else row.eval_loss)
        rows += found
    return rows


def row_of(run: Path) -> Row:
    status, record, card = Status.read(run), Record.read(run), Card.read(run)
    job = status.job or (record.job if record and record.cluster == "slurm" else None)
    if record and record.cluster == "slurm" and record.submitted > status.updated:
        job = record.job
    begun = (run / FILE).exists() and not (record and record.submitted > status.updated)
    queue = _queue(job) if job else None
    state, why = (str(status.state), status.reason or "") if begun else ("queued", "")
    if queue is not None and queue[0] == "PENDING":
        waits = f"waits: {queue[1]}"
        state, why = "queued", f"{waits}; {state} before: {why}" if begun and why else waits
    elif state in ("starting", "running") and (card is None or not card.seems_alive(run)):
        state, why = "lost", f"no heartbeat of {card.describe()}" if card else "no owner"
    elif state == "queued" and queue is not None and queue[0] not in ("RUNNING", "CONFIGURING"):
        state, why = "lost", f"Slurm has job {job} as {queue[0]}; see {record.log if record else 'its log'}"
    return Row(
        run=run.name,
        state=state,
        step=status.step,
        steps=status.num_steps,
        loss=status.loss,
        eval_loss=status.eval_loss,
        tokens_per_second=status.tokens_per_second if state == "running" else None,
        seconds_left=status.seconds_left if state == "running" else None,
        restarts=max(0, status.starts - 1),
        job=job,
        why=why,
    )


def _queue(job: str) -> tuple[str, str] | None:
    """State and reason; None where Slurm does not answer. A job that squeue forgot is asked of sacct."""
    answer = slurm.ask("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T|%r")
    if answer:
        state, _, reason = answer.splitlines()[0].partition("|")
        return state, reason
    answer = slurm.ask("sacct", "--noheader", "--allocations", "--parsable2", f"--jobs={job}", "--format=State")
    return (answer.split()[0], "") if answer else None


def table(rows: list[Row]) -> Table:
    made = Table(box=None, header_style="bold")
    for name in ("run", "state", "step", "loss", "eval loss", "tok/s", "left", "restarts", "job", "why"):
        made.add_column(name, justify="left" if name in ("run", "state", "why") else "right", overflow="fold")
    for row in rows:
        made.add_row(
            visible(row.run),
            f"[{STYLE.get(row.state, 'yellow')}]{row.state}[/]",
            f"{row.step}/{row.steps or '?'}",
            number(row.loss, ".4f"),
            number(row.eval_loss, ".4f"),
            number(row.tokens_per_second, ",.0f"),
            duration(row.seconds_left) if row.seconds_left is not None else "-",
            str(row.restarts),
            row.job or "-",
            visible(row.why).replace("[", "\\["),
        )
    return made


def write_csv(folder: Path, rows: list[Row]) -> None:
    """The sweep's table as a file: best first."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(Row.__dataclass_fields__))
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_whole(folder / "table.csv", text.getvalue())


def plot(folder: Path) -> Path:
    """Training and held-out loss of all runs in `folder`, in one self-contained page."""
    from plotly.graph_objects import Figure, Scatter

    figure = Figure(layout={"title": folder.name, "xaxis_title": "step", "yaxis_title": "loss"})
    for run in runs_in(folder):
        rows = list(metrics.read(run / metrics.FILE))
        for split, dash in (("train", "dot"), ("eval", "solid")):
            points = [(row["step"], row["loss"]) for row in rows if row["split"] == split]
            x, y = zip(*points, strict=True) if points else ((), ())
            figure.add_trace(Scatter(x=x, y=y, name=f"{run.name} {split}", line={"dash": dash}, legendgroup=run.name))
    path = folder / "curves.html"
    write_whole(path, figure.to_html(include_plotlyjs=True))
    return path


if __name__ == "__main__":
    run_command(main)
