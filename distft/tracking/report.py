"""report.html: the run as one self-contained page."""

import html
import time
from collections.abc import Callable
from typing import Any

from distft.runtime.files import write_whole
from distft.tracking import metrics
from distft.tracking.seam import Lines, Row, RunInfo, Sample, Summary

FILE = "report.html"
MOST_POINTS = 2000
"""Points a curve is thinned to."""
SHARE_OF_TIME = 0.02
"""Most of the run's time that may go into rewriting the page."""
COLORS = {"line": "#2f6fb3", "faint": "#a9c6e4", "eval": "#d1495b"}

PANELS: list[tuple[str, str, Callable[[float], float]]] = [
    ("learning rate", "lr", float),
    ("gradient norm", "grad_norm", float),
    ("tokens per second", "tokens_per_second", float),
    ("peak memory (GB)", "peak_memory_bytes", lambda size: size / 1e9),
]

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; background: #f4f6f8; margin: 0; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 28px 0 8px; }
.status { display: inline-block; padding: 1px 10px; border-radius: 10px; color: #fff; font-size: 13px;
  background: #687586; }
.finished { background: #2c8a57; } .stopped { background: #c27c0e; } .failed { background: #c0392b; }
.card { background: #fff; border: 1px solid #e1e6ec; border-radius: 8px; padding: 6px 14px; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: 5px 10px 5px 0; }
tr + tr td { border-top: 1px solid #eef1f4; } .label { color: #687586; white-space: nowrap; width: 1%; }
.samples td { white-space: pre-wrap; width: 25%; overflow-wrap: anywhere; }
footer { color: #687586; font-size: 13px; margin-top: 28px; } code { font-size: 13px; }
"""


class Report:
    """Rewrites `<run>/report.html` from metrics.jsonl after evaluations and at the end.

    A page takes about a second, so evaluations that follow each other closely share one.
    """

    def __init__(self) -> None:
        self._next_write = 0.0

    def start(self, info: RunInfo) -> None:
        self._info = info

    def log(self, row: Row) -> None:
        begin = time.monotonic()
        if row["split"] == "eval" and begin >= self._next_write:
            self._write(None)
            end = time.monotonic()
            self._next_write = end + (end - begin) / SHARE_OF_TIME

    def close(self, summary: Summary) -> None:
        self._write(summary)

    def _write(self, summary: Summary | None) -> None:
        rows = list(metrics.read(self._info.run_dir / metrics.FILE))
        write_whole(self._info.run_dir / FILE, page(self._info, rows, summary))


def page(info: RunInfo, rows: list[Row], summary: Summary | None = None) -> str:
    """The whole page. It loads nothing: plotly's script is in it."""
    from plotly.offline import get_plotlyjs

    name, status = html.escape(info.name), summary.status if summary else "running"
    step = max((row["step"] for row in rows), default=info.first_step)
    stamp = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    parts = [
        f'<h1>{name}</h1><p><span class="status {status}">{status}</span> step {step} of {info.num_steps}</p>',
        _table("Outcome", metrics.outcome(rows) + (summary.lines if summary else [])),
        f'<h2>Curves</h2><div class="card">{_curves(rows)}</div>',
        _samples(summary.samples if summary else []),
        _table("Plan", info.plan),
        _table("Next", [("", command) for command in (summary.next_commands if summary else [])], code=True),
        f"<footer>Written {stamp} from <code>{html.escape(str(info.run_dir / metrics.FILE))}</code></footer>",
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style><script>{get_plotlyjs()}</script></head><body><main>{''.join(parts)}</main></body></html>"
    )


def smoothed(values: list[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average without the pull towards zero at its start (Adam's bias correction)."""
    average, out = 0.0, []
    for count, value in enumerate(values, 1):
        average = weight * average + (1 - weight) * value
        out.append(average / (1 - weight**count))
    return out


def _curves(rows: list[Row]) -> str:
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    train = [row for row in rows if row["split"] == "train"]
    layout = [[{"colspan": 2}, None], [{}, {}], [{}, {}]]
    titles = ["loss", *(title for title, _, _ in PANELS)]
    figure = make_subplots(
        3, 2, specs=layout, subplot_titles=titles, row_heights=[0.46, 0.27, 0.27], vertical_spacing=0.1
    )

    def draw(name: str, points: tuple[list[int], list[float]], place: tuple[int, int], **look: Any) -> None:
        figure.add_trace(Scatter(x=points[0], y=points[1], name=name, **look), *place)

    steps, losses = _points(train, "loss")
    look = {"mode": "lines" if len(steps) > 1 else "markers"}
    draw("train", _thin(steps, losses), (1, 1), line={"color": COLORS["faint"], "width": 1.5}, **look)
    draw(
        "train, smoothed", _thin(steps, smoothed(losses)), (1, 1), line={"color": COLORS["line"], "width": 2.5}, **look
    )
    held_out = _points([row for row in rows if row["split"] == "eval"], "loss")
    draw("eval", held_out, (1, 1), line={"color": COLORS["eval"], "width": 2}, marker={"size": 8}, mode="lines+markers")
    for index, (title, key, scale) in enumerate(PANELS):
        steps, values = _points(train, key)
        points = _thin(steps, [scale(value) for value in values])
        style = {"color": COLORS["line"], "width": 1.5}
        draw(title, points, (2 + index // 2, 1 + index % 2), line=style, showlegend=False, **look)
    figure.update_layout(
        template="plotly_white", height=860, margin={"l": 56, "r": 16, "t": 40, "b": 40}, hovermode="x unified",
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "top"},
    )  # fmt: skip
    figure.update_xaxes(title_text="step", title_standoff=4)
    figure.update_yaxes(exponentformat="e", row=2)
    figure.update_yaxes(rangemode="tozero", row=3)
    config = {"displaylogo": False, "responsive": True}
    return figure.to_html(full_html=False, include_plotlyjs=False, include_mathjax=False, config=config)


def _points(rows: list[Row], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one curve; rows without the number (NaN is null in metrics.jsonl) are left out."""
    pairs = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _thin(steps: list[int], values: list[float]) -> tuple[list[int], list[float]]:
    """About MOST_POINTS of the points, the lowest and the highest of each stretch among them: no spike is lost."""
    stretch = -(-2 * len(steps) // MOST_POINTS)
    if stretch <= 2:
        return steps, values
    keep: set[int] = {len(steps) - 1}
    for begin in range(0, len(steps), stretch):
        indices = range(begin, min(begin + stretch, len(steps)))
        keep |= {min(indices, key=values.__getitem__), max(indices, key=values.__getitem__)}
    return [steps[index] for index in sorted(keep)], [values[index] for index in sorted(keep)]


def _table(title: str, lines: Lines, code: bool = False) -> str:
    if not lines:
        return ""
    cell = "<code>{}</code>" if code else "{}"
    body = "".join(
        f'<tr><td class="label">{html.escape(label)}</td><td>{cell.format(html.escape(text))}</td></tr>'
        for label, text in lines
    )
    return f'<h2>{title}</h2><div class="card"><table>{body}</table></div>'


def _samples(samples: list[Sample]) -> str:
    if not samples:
        return ""
    head = "".join(f"<th>{column}</th>" for column in ("prompt", "before", "after", "reference"))
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(text or '')}</td>" for text in texts) + "</tr>"
        for texts in ((sample.prompt, sample.before, sample.after, sample.reference) for sample in samples)
    )
    return f'<h2>Samples</h2><div class="card"><table class="samples"><tr>{head}</tr>{body}</table></div>'
