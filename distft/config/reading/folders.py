"""Where configs are: the shipped groups, the user's own, and the folder of a run."""

from collections.abc import Iterable
from pathlib import Path

from distft.config.keys import nearest
from distft.errors import ConfigError


def conf_dir() -> Path:
    """`conf/`: inside the package in an installed wheel, beside it in a clone."""
    inside = Path(__file__).parents[2] / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[3] / "conf"


def group_options(folders: Iterable[Path]) -> dict[str, dict[str, Path]]:
    """The options of every group in some config folders, by name, with their files; the first folder wins."""
    groups: dict[str, dict[str, Path]] = {}
    for folder in folders:
        for file in sorted(folder.rglob("*.yaml")):
            group = file.parent.relative_to(folder).as_posix()
            if group != "." and not file.stem.startswith("_"):
                groups.setdefault(group, {}).setdefault(file.stem, file)
    return groups


def run_folder(name: str | None, problems: list[str]) -> Path:
    if name is None:
        raise ConfigError([*problems, "run: must be set, to a run's folder; give run=runs/NAME"])
    folder = Path(name).expanduser()
    if (folder / "config.yaml").is_file():
        return folder
    siblings = [path.parent.name for path in sorted(folder.parent.glob("*/config.yaml"))]
    near = nearest(folder.name, siblings)
    what = "that is a run's (it has a config.yaml)" if folder.is_dir() else "that exists"
    hint = f"did you mean run={folder.parent / near}?" if near else f"runs there: {', '.join(siblings) or 'none'}"
    raise ConfigError([*problems, f"run: must be a folder {what}, got {name}; {hint}"])
