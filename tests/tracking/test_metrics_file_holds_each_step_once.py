import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tracked_rows import eval_row, log_steps, train_row

from distft.errors import DistftError
from distft.tracking import metrics
from distft.tracking.metrics import MetricsFile


def started(info) -> MetricsFile:
    file = MetricsFile()
    file.start(info)
    return file


def strict_rows(run_dir) -> list[dict]:
    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    text = (run_dir / "metrics.jsonl").read_text()
    assert text.endswith("\n") or not text
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def places(run_dir) -> list[tuple]:
    return [(row["step"], row["split"]) for row in strict_rows(run_dir)]


def whole(last: int) -> list[tuple]:
    both = [[(step, "train")] + [(step, "eval")] * (step % 10 == 0) for step in range(1, last + 1)]
    return [place for step in both for place in step]


def test_resume_cuts_the_rows_after_the_checkpoint(info, tmp_path):
    log_steps(started(info()), 1, 27)
    log_steps(started(info(first_step=20)), 21, 40)
    assert places(tmp_path) == whole(40)


def test_fresh_start_cuts_every_row_even_that_of_step_zero(info, tmp_path):
    started(info()).log(eval_row(0))
    started(info()).log(eval_row(0, loss=9.0))
    assert [row["loss"] for row in strict_rows(tmp_path)] == [9.0]


def test_evaluation_done_again_after_a_resume_stands_once(info, tmp_path):
    log_steps(started(info()), 1, 20)
    again = started(info(first_step=20))
    again.log(eval_row(20))
    log_steps(again, 21, 30)
    assert places(tmp_path) == whole(30)


@pytest.mark.parametrize("torn", ['{"step": 23, "split": "tr', '{"step": 20, "spl\n', "\0\0\0\0", "12", "\n"])
def test_torn_last_line_is_survived(info, tmp_path, torn):
    log_steps(started(info()), 1, 22)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    log_steps(started(info(first_step=20)), 21, 30)
    assert places(tmp_path) == whole(30)


def test_every_row_outlives_a_kill_in_the_next_step(info, tmp_path):
    code = (
        "import sys, os, signal; sys.path.insert(0, sys.argv[2]); from pathlib import Path\n"
        "from tracked_rows import train_row\n"
        "from distft.tracking.seam import RunInfo; from distft.tracking.metrics import MetricsFile\n"
        "file = MetricsFile(); file.start(RunInfo('a', Path(sys.argv[1]), 'id', [], 9))\n"
        "for step in range(1, 8): file.log(train_row(step))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)])
    assert done.returncode == -signal.SIGKILL
    assert [row["step"] for row in strict_rows(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]


def test_nan_and_infinity_are_null(info, tmp_path):
    file = started(info())
    file.log(train_row(1, loss=float("nan"), grad_norm=float("inf"), lr=float("-inf")))
    (row,) = strict_rows(tmp_path)
    assert (row["loss"], row["grad_norm"], row["lr"], row["tokens"]) == (None, None, None, 512)


def test_array_scalars_are_plain_numbers(info, tmp_path):
    numpy = pytest.importorskip("numpy")
    started(info()).log(train_row(1, loss=numpy.float32(0.5), tokens=numpy.int64(7), lr=numpy.float64("nan")))
    (row,) = strict_rows(tmp_path)
    assert (row["loss"], row["tokens"], row["lr"]) == (0.5, 7, None)


def test_unwritable_metrics_file_is_an_error_for_people(info):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    file = started(info())
    file._file = Path("/dev/full").open("w")  # noqa: SIM115
    with pytest.raises(DistftError, match="No space left"):
        file.log(train_row(1))


def test_outcome_counts_percent_from_the_first_evaluation():
    rows = [eval_row(0, 2.0), train_row(1), eval_row(10, 1.0), eval_row(20, 1.5)]
    assert metrics.outcome(rows) == [
        ("eval loss", "2.0000 -> 1.5000 (-25.0 %)"),
        ("best step", "10 (eval loss 1.0000)"),
    ]
    assert metrics.outcome([train_row(1)]) == []
