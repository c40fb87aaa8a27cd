"""A task's run that was stopped and resumed ends as the run that was not: same rows, same metrics, same weights."""

import json
import signal

import pytest
import small

from tests.resume import hooks, runs

CASES = {
    "encoder": ("sequence_classification", small.BERT, small.labelled),
    "windows": ("token_classification", small.BERT, small.tagged),
    "seq2seq": ("seq2seq", {**small.T5, "dropout_rate": 0.1}, small.rewritten),
    "pairs": ("preference", small.LLAMA, small.pair),
}


def rows_of(run):
    """Every number of every row but those of the machine."""
    ignored = ("time", "step_seconds", "tokens_per_second", "peak_memory_bytes")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ignored} for line in lines]


@pytest.mark.parametrize("case", CASES)
def test_a_stopped_run_ends_as_if_it_had_not_been(commands, words_folder, tmp_path, case):
    task, shape, make = CASES[case]
    whole = small.run_words(task, words_folder, tmp_path / "whole", shape, make)
    cut = small.run_words(task, words_folder, tmp_path / "cut", shape, make)
    assert commands.run(*whole).code == 0
    stopped = commands.run(*cut, hook=(hooks.signal_in_step, 0, 4, signal.SIGTERM))
    assert stopped.code == 75, stopped.output
    assert runs.steps(tmp_path / "cut" / "run")[-1] == 4
    resumed = commands.run(*cut)
    assert resumed.code == 0, resumed.output
    assert rows_of(tmp_path / "cut" / "run") == rows_of(tmp_path / "whole" / "run")
    assert runs.adapter(tmp_path / "cut" / "run") == runs.adapter(tmp_path / "whole" / "run")
    assert len({row["loss"] for row in rows_of(tmp_path / "whole" / "run") if row["split"] == "eval"}) > 1
