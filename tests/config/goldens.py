"""python -m tests.config.goldens (make goldens): writes the resolved config of every shipped experiment to goldens/.

A default that changes shows as a diff of those files, in the commit that changes it.
"""

from pathlib import Path

from distft.config.reading.compose import load
from distft.config.reading.folders import conf_dir
from distft.config.reading.resolved import to_yaml

FOLDER = Path(__file__).parent / "goldens"
EXPERIMENTS = sorted(file.stem for file in (conf_dir() / "exp").glob("*.yaml"))


def resolved(experiment: str) -> str:
    """What a run folder's config.yaml would say of the experiment as it is shipped."""
    return to_yaml(load([f"+exp={experiment}"], program="distft.train", world_size=1, here=False))


def write(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for stale in folder.glob("*.yaml"):
        stale.unlink()
    for experiment in EXPERIMENTS:
        (folder / f"{experiment}.yaml").write_text(resolved(experiment), encoding="utf-8")


if __name__ == "__main__":
    write(FOLDER)
