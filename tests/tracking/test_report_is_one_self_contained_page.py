import base64
import html
import json
import re
from html.parser import HTMLParser

import numpy
import pytest
from tracked_rows import eval_row, log_steps, train_row

from distft.tracking import metrics
from distft.tracking.metrics import MetricsFile
from distft.tracking.report import Report, _thin, page, smoothed


@pytest.fixture
def report(info, summary, tmp_path) -> str:
    file, observer = MetricsFile(), Report()
    file.start(info())
    log_steps(file, 1, 27)
    file.start(info(first_step=20))  # another process in life
    observer.start(info(first_step=20))
    for step in range(21, 41):
        file.log(train_row(step))
    file.log(eval_row(40))
    observer.log(eval_row(40))
    assert "running" in (tmp_path / "report.html").read_text(encoding="utf-8")
    observer.close(summary)
    assert not (tmp_path / "report.html.tmp").exists()
    return (tmp_path / "report.html").read_text(encoding="utf-8")


class Loads(HTMLParser):
    """Collects what a browser would fetch for a page."""

    def __init__(self):
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.urls += [value for name, value in attributes if name in ("src", "href", "data", "action")]


def test_report_loads_nothing(report):
    parser = Loads()
    parser.feed(report)
    assert parser.urls == []
    assert "@import" not in report.split("</style>")[0]
    assert len(report) > 1_000_000  # plotly itself


def traces(report: str) -> dict[str, tuple[list, list]]:
    call = re.search(r"Plotly\.newPlot\(\s*\"[^\"]+\",\s*(\[.*?\}\]),\s*\{\"", report[-400_000:], re.DOTALL)
    assert call

    def numbers(value):
        if isinstance(value, dict):
            return numpy.frombuffer(base64.b64decode(value["bdata"]), value["dtype"]).tolist()
        return value

    return {trace["name"]: (numbers(trace["x"]), numbers(trace["y"])) for trace in json.loads(call[1])}


def test_report_draws_every_row_of_a_resumed_run(report):
    curves = traces(report)
    steps, losses = curves["train"]
    assert steps == list(range(1, 41))
    assert losses == pytest.approx([1 + 1 / step for step in steps])
    assert curves["eval"][0] == [10, 20, 40]
    assert curves["peak memory (GB)"][1] == [1.0] * 40
    assert {"learning rate", "gradient norm", "tokens per second", "train, smoothed"} <= set(curves)


def test_report_escapes_what_a_model_says(report):
    assert "<script>alert(1)" not in report
    assert html.escape("<script>alert(1)</script>") in report
    assert "a &amp; b" in report


def test_report_shows_plan_outcome_and_status(report, info):
    for text in ('"status finished"', "step 40 of 40", "tiny [float32]", "runs/a-run/adapter", "best step"):
        assert text in report


def test_report_of_a_run_without_rows_is_a_page(info):
    assert "running" in page(info(), [])


def test_smoothing_starts_at_the_first_value_and_keeps_a_constant():
    assert smoothed([3.0] * 5) == pytest.approx([3.0] * 5)
    assert smoothed([1.0, 2.0])[1] == pytest.approx((0.09 * 1 + 0.1 * 2) / 0.19)


def test_thinning_keeps_every_spike():
    values = [1.0] * 100_000
    values[77_777], values[5] = 50.0, float("-3")
    steps, kept = _thin(list(range(100_000)), values)
    assert len(steps) < 4000 and 50.0 in kept and -3.0 in kept and steps == sorted(set(steps))
    assert steps[-1] == 99_999


def test_null_losses_are_gaps_not_errors(info, tmp_path):
    file = MetricsFile()
    file.start(info())
    file.log(train_row(1, loss=float("nan")))
    file.log(eval_row(1, float("nan")))
    curves = traces(page(info(), list(metrics.read(tmp_path / metrics.FILE))))
    assert curves["train"] == ([], []) and curves["eval"] == ([], []) and curves["gradient norm"] == ([1], [0.5])
