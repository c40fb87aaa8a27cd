"""SIGTERM, SIGINT and SIGUSR2 end a run with a checkpoint and exit code 75; the same command goes on."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.resume import hooks, runs


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2], ids=lambda n: n.name)
def test_a_signal_ends_the_step_and_saves_it(commands, tiny, tmp_path, number):
    words = tiny(tmp_path, "steps=40", "checkpoint.every=1000", "optim.schedule=constant")
    started = commands.start(*words)
    started.wait_for(tmp_path / "run" / "metrics.jsonl", '"step": 2, "split": "train"')
    started.signal(0, number)
    stopped = started.end()
    assert stopped.code == 75, stopped.output
    assert f"stopped by {number.name}; run the same command to go on" in stopped.output
    assert "Traceback" not in stopped.output
    done = runs.rows(tmp_path / "run", "train")[-1]["step"]
    assert runs.steps(tmp_path / "run") == [done] and done < 40

    words[words.index("steps=40")] = f"steps={done + 1}"
    assert commands.run(*words).code == 0
    assert [row["step"] for row in runs.rows(tmp_path / "run", "train")] == list(range(1, done + 2))


@pytest.mark.parametrize("engine", ["fsdp", "zero3"])
def test_a_signal_to_one_rank_stops_all_at_the_same_step(commands, tiny, tmp_path, engine):
    words = tiny(tmp_path, f"engine={engine}")
    stopped = commands.run(*words, world_size=2, hook=(hooks.signal_in_step, 1, 3, signal.SIGTERM))
    assert stopped.code == 75, stopped.output
    assert runs.steps(tmp_path / "run") == [2, 3]
    assert commands.run(*words, world_size=2).code == 0
    assert [row["step"] for row in runs.rows(tmp_path / "run", "train")] == [1, 2, 3, 4, 5, 6]


def test_a_stop_in_the_last_step_leaves_the_last_evaluation_to_the_next_start(commands, tiny, tmp_path):
    assert commands.run(*tiny(tmp_path / "whole")).code == 0
    words = tiny(tmp_path / "cut")
    assert commands.run(*words, hook=(hooks.signal_in_step, 0, 6, signal.SIGTERM)).code == 75
    assert not (tmp_path / "cut" / "run" / "adapter").exists()
    assert commands.run(*words).code == 0
    assert runs.rows(tmp_path / "cut" / "run") == runs.rows(tmp_path / "whole" / "run")
    assert runs.adapter(tmp_path / "cut" / "run") == runs.adapter(tmp_path / "whole" / "run")


def test_no_rank_leaves_before_the_checkpoint_is_published(commands, tiny, tmp_path):
    words = tiny(tmp_path, "engine=fsdp", "steps=2")
    ended = commands.run(*words, world_size=2, hook=(hooks.slow_writes, 1.5))
    assert ended.code == 0, ended.output
    assert runs.steps(tmp_path / "run") == [2]


def test_torchrun_starts_it_stops_it_and_goes_on(tiny, tmp_path):
    words = tiny(tmp_path, "engine=fsdp", "steps=400", "checkpoint.every=1000")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run, output = tmp_path / "run", tmp_path / "output"
    with output.open("w") as file:
        process = subprocess.Popen(
            [*torchrun, "-m", "distft.train", *words],
            stdout=file,
            stderr=file,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    try:
        end = time.monotonic() + 180
        while (
            not (run / "metrics.jsonl").exists()
            or '"step": 2, "split": "train"' not in (run / "metrics.jsonl").read_text()
        ):
            assert process.poll() is None and time.monotonic() < end, output.read_text()
            time.sleep(0.05)
        os.kill(json.loads((run / "owner.json").read_text())["pid"], signal.SIGTERM)
        process.wait(60)
    finally:
        process.kill()
    assert "exitcode  : 75" in output.read_text(), output.read_text()
    (step,) = runs.steps(run)
    assert step == runs.rows(run, "train")[-1]["step"]
