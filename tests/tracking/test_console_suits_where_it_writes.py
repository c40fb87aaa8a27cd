import io
import re
import time

from tracked_rows import eval_row, log_steps, train_row

from distft.tracking.console import ConsoleTracker, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def output(info, summary, file=None) -> str:
    file = file or io.StringIO()
    console = ConsoleTracker(file)
    console.start(info())
    console.log(eval_row(0, 2.0))
    log_steps(console, 1, 40)
    console.close(summary)
    return file.getvalue()


def test_log_file_gets_no_control_characters_even_from_samples(info, summary, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = output(info, summary)
    assert not re.findall(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    assert r"\x1b" in text  # the reply's escape sequence, spelt out


def test_log_file_gets_first_and_last_step_and_every_evaluation(info, summary):
    lines = [line for line in output(info, summary).splitlines() if line.startswith("step")]
    assert [(line.split("/")[0], "eval" in line) for line in lines] == [
        ("step  0", True), ("step  1", False), ("step 10", True), ("step 20", True), ("step 30", True),
        ("step 40", False), ("step 40", True),
    ]  # fmt: skip


def test_log_file_gets_a_line_at_most_every_ten_seconds(info, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    file = io.StringIO()
    console = ConsoleTracker(file)
    console.start(info(num_steps=1000))
    for step in range(1, 101):
        now[0] += 3
        console.log(train_row(step))
    steps = [int(line.split()[1].split("/")[0]) for line in file.getvalue().splitlines() if line.startswith("step")]
    assert steps == list(range(1, 101, 4))
    assert "45:09 left" in file.getvalue().splitlines()[-1]  # (1000 - 97) steps of 3 s


def test_everything_but_commands_fits_eighty_columns(info, summary):
    text = output(info, summary)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "1,000 rows 1,000 rows" in text


def test_summary_shows_outcome_samples_and_commands(info, summary):
    text = output(info, summary)
    for part in ("a-run: finished", "eval loss  2.0000 -> 1.2183 (-39.1 %)", "best step  40", "before", "after"):
        assert part in text
    assert "  python -m distft.evaluate run=runs/a\n" in text


def test_run_that_stopped_early_shows_its_last_step(info, summary):
    file = io.StringIO()
    console = ConsoleTracker(file)
    console.start(info())
    log_steps(console, 1, 7)
    console.close(summary)
    assert "step  7/40" in file.getvalue()


def test_terminal_gets_a_bar_and_no_colours_when_asked(info, summary, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    colour = re.compile(r"\x1b\[[0-9;]*3[0-7]m")
    assert colour.search(output(info, summary, Terminal()))
    monkeypatch.setenv("NO_COLOR", "1")
    text = output(info, summary, Terminal())
    assert not colour.search(text)
    assert "━" in text


def test_duration_reads_like_a_clock():
    assert [duration(s) for s in (None, 42.4, 3723, 48 * 3600 + 59)] == ["-:--", "0:42", "1:02:03", "2d 00h"]
