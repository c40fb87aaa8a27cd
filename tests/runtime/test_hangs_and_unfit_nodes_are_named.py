"""Who hangs is who does not wait for the others; who is unfit is who is slower than the others."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch.distributed

import distft
from distft.runtime.hang import summarise, where
from distft.runtime.preflight import judge
from tests.resume import runs

WAITS, BUSY = {"at": "group.py:48 table", "waits": True}, {"at": "loop.py:95 _step", "waits": False}


def test_a_rank_that_does_not_answer_is_the_suspect():
    told, suspects = summarise({0: WAITS, 2: WAITS}, ["n1", "n1", "n2"], 60)
    assert suspects == [1]
    assert told == "no step for 60 s: rank 1 on n1 does not answer, 2 of 3 ranks wait at group.py:48 table"


def test_of_ranks_that_all_answer_the_one_that_does_not_wait_is_the_suspect():
    told, suspects = summarise({0: WAITS, 1: BUSY}, ["n1", "n2"], 60)
    assert suspects == [1] and "rank 1 on n2 stands at loop.py:95 _step" in told


def test_where_all_wait_nobody_is_blamed():
    assert summarise({0: WAITS, 1: WAITS}, ["n1", "n2"], 60)[1] == []


OURS, TORCHS = Path(distft.__file__).parent, Path(torch.distributed.__file__).parent


def stand_in(*files):
    """What `where` says of a main thread whose calls, from the outermost, are each of a file."""
    with ThreadPoolExecutor(1) as pool:
        call = lambda: pool.submit(where).result()  # noqa: E731
        for file in reversed(files):
            place = {"call": call}
            exec(compile("def stand(): return call()", str(file), "exec"), place)  # noqa: S102
            call = place["stand"]
        return call()


@pytest.mark.machine
@pytest.mark.parametrize("theirs", ["distft/tests/users.py", "distft/runtime/group.py", "mine/torch/distributed/a.py"])
def test_a_hang_is_placed_in_the_package_whatever_the_folders_of_other_code_are_called(tmp_path, theirs):
    """A clone may be called distft, and a user's model code stand anywhere."""
    standing = stand_in(OURS / "train" / "loop.py", tmp_path / theirs)
    assert standing == {"at": "loop.py:1 stand", "waits": False}


@pytest.mark.parametrize("file", [OURS / "runtime" / "group.py", TORCHS / "distributed_c10d.py"])
def test_a_rank_in_a_collective_waits(file):
    assert stand_in(OURS / "train" / "loop.py", file)["waits"]


def test_slow_and_wrong_ranks_condemn_their_nodes():
    nodes = ["n1", "n1", "n2", "n3"]
    unfit = judge(nodes, [10.0, 9.0, 5.0, 11.0], [True, True, True, False])
    assert set(unfit) == {"n2", "n3"}
    assert "rank 2 multiplies at 5 TFLOP/s" in unfit["n2"] and "wrongly" in unfit["n3"]
    assert judge(nodes, [10.0, 9.0, 8.0, 11.0], [True] * 4) == {}


def run_preflight(group):
    from distft.runtime import preflight

    preflight.SECONDS, preflight.SLOW = 0.3, 0.0  # its cores may be busy with something else
    return preflight.preflight(group)


def test_this_machine_computes_and_adds_rightly(two_ranks):
    assert two_ranks.run(run_preflight) == [{}, {}]


def sleep_in_step(global_rank: int, rank: int, step: int) -> None:
    """Hook: `rank` never comes out of a step (counted from 1)."""
    import time

    from distft.train import loop

    run_step = loop._step

    def hang(run: loop.Run) -> bool:
        if run.progress.step + 1 == step and global_rank == rank:
            time.sleep(600)
        return run_step(run)

    loop._step = hang


@pytest.mark.machine
def test_a_hang_ends_the_run_and_names_the_rank_and_its_place(commands, tiny, tmp_path):
    words = tiny(tmp_path, "steps=50", "runtime.hang_after=3")
    ended = commands.run(*words, world_size=2, hook=(sleep_in_step, 1, 4), timeout_s=60)
    assert ended.codes == [1, 1], ended.output
    run = tmp_path / "run"
    told = (run / "logs" / "hang.txt").read_text()
    assert f"stands at {Path(__file__).name}" not in told and "rank 1 on" in told and "1 of 2 ranks wait at" in told
    assert json.loads((run / "status.json").read_text())["state"] == "hung"
    assert "hang" in (run / "logs" / "hang-rank-00001.txt").read_text()
    again = commands.run(*tiny(tmp_path, "steps=50"), world_size=2)
    assert again.code == 0, again.output
    assert [row["step"] for row in runs.rows(run, "train")] == list(range(1, 51))
