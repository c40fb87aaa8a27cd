"""The environment of the lowest versions is that of the floors in pyproject.toml."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def test_the_lowest_environment_holds_each_floor_exactly():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    floors = {}
    for requirement in map(Requirement, project["dependencies"]):
        (floor,) = (part.version for part in requirement.specifier if part.operator == ">=")
        floors[requirement.name] = Version(floor)
    lines = (ROOT / "constraints-lowest.txt").read_text().split("\n\n")[0].splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {name: Version(version) for name, version in pinned.items()} == floors
