import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.resume import runs
from tests.resume.tiny_run import commands, tiny  # noqa: F401  (fixtures)
from tests.slurm.real_cluster import MISSING, RealCluster, processes_of, until

LONG = ["steps=120", "checkpoint.every=10", "evaluation.every=50", "data.max_length=64"]
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
        return tiny(run_root, "cluster=slurm", "cluster.nodes=2", *LONG, *changes)

    return make


@pytest.fixture(scope="session")
def straight(commands, tiny, tmp_path_factory) -> Callable[..., str]:  # noqa: F811
    """The adapter of such a run on two processes of this machine that nothing interrupts."""
    known: dict[tuple[str, ...], str] = {}

    def adapter(*changes: str) -> str:
        if changes not in known:
            folder = tmp_path_factory.mktemp("straight")
            ended = commands.run(*tiny(folder, *LONG, *changes), world_size=2)
            assert ended.code == 0, ended.output
            known[changes] = runs.adapter(folder / "run")
        return known[changes]

    return adapter


@pytest.fixture(autouse=True)
def no_orphans(tmp_path: Path) -> Iterator[None]:
    yield
    until(lambda: not processes_of(tmp_path), 30, lambda: f"orphans: {processes_of(tmp_path)}")
