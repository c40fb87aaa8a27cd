import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.resume import runs
from tests.resume.tiny_run import commands, tiny  # noqa: F401  (fixtures)
from tests.slurm.real_cluster import MISSING, RealCluster, processes_of, until

LONG = ["steps=80", "checkpoint.every=10", "data.max_length=64"]
SLOW = """
import sys, threading, time

def slow_down():
    while not hasattr(sys.modules.get("distft.train.loop"), "_step"):
        time.sleep(0.05)
    loop = sys.modules["distft.train.loop"]
    step = loop._step
    loop._step = lambda run: time.sleep(0.5) or step(run)

threading.Thread(target=slow_down, daemon=True).start()
"""
HOW = "needs a Slurm on this machine, as root: slurm/README.md names the packages"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if Path(__file__).parent in Path(item.fspath).parents]
    for item in here:
        item.add_marker(pytest.mark.slurm)
        item.add_marker(pytest.mark.timeout(300))
        if MISSING:
            item.add_marker(pytest.mark.skip(reason=f"{HOW}; missing: {', '.join(MISSING)}"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[RealCluster]:
    real = RealCluster(f"t{os.environ.get('PYTEST_XDIST_WORKER', 'one')}")
    yield real
    real.call("down")


@pytest.fixture
def words(cluster: RealCluster, tiny: Callable[..., list[str]], tmp_path: Path) -> Callable[..., list[str]]:  # noqa: F811
    """The words of a run of small steps on two nodes, in a folder that must be left without processes."""

    def make(*changes: str, run_root: Path = tmp_path) -> list[str]:
        setup = 'cluster.setup=["export TORCHDYNAMO_DISABLE=1"]'  # two seconds of imports less a rank
        return tiny(run_root, "cluster=slurm", "cluster.nodes=2", setup, *LONG, *changes)

    return make


@pytest.fixture(scope="session")
def straight(commands, tiny, tmp_path_factory) -> str:  # noqa: F811
    """The adapter of such a run on two processes of this machine that nothing interrupts."""
    known = tmp_path_factory.getbasetemp().parent / "straight.txt"  # the workers' own folders are beside each other
    with FileLock(f"{known}.lock"):
        if not known.exists():
            folder = tmp_path_factory.mktemp("straight")
            ended = commands.run(*tiny(folder, *LONG), world_size=2)
            assert ended.code == 0, ended.output
            known.write_text(runs.adapter(folder / "run"))
    return known.read_text()


@pytest.fixture
def slow_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of jobs launched from here take half a second more, in which they use no processor."""
    folder = tmp_path / "slow"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SLOW)
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{Path(__file__).parents[2]}")


@pytest.fixture(autouse=True)
def no_orphans(tmp_path: Path) -> Iterator[None]:
    yield
    until(lambda: not processes_of(tmp_path), 30, lambda: f"orphans: {processes_of(tmp_path)}")
