"""What `pyproject.toml` puts into a wheel answers from any folder: the configs lie inside the package there."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WHEEL = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The files of the wheel where it would put them."""
    folder = tmp_path_factory.mktemp("site")
    for path in (each.strip("/") for each in WHEEL["include"]):
        shutil.copytree(ROOT / path, folder / WHEEL["sources"].get(path, path), dirs_exist_ok=True)
    return folder


def test_an_installed_package_reads_its_own_configs(site, tmp_path):
    say = "import distft.config.reading.folders as f; print(f.conf_dir())"
    env = {**os.environ, "PYTHONPATH": str(site)}
    found = subprocess.run([sys.executable, "-c", say], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert found.stdout.strip() == str(site / "distft" / "conf"), found.stderr
    words = [sys.executable, "-m", "distft.train", "+exp=llama_lora", "--cfg", "job"]
    installed = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True)
    here = subprocess.run(words, env={**env, "PYTHONPATH": str(ROOT)}, cwd=ROOT, capture_output=True, text=True)
    assert installed.returncode == 0 and installed.stdout == here.stdout


def test_a_wheel_says_that_it_is_typed_and_brings_its_samples(site):
    assert (site / "distft" / "py.typed").exists()
    assert {file.name for file in (site / "distft" / "data" / "samples").iterdir()} >= {"dates.jsonl", "entities.jsonl"}
    assert (site / "launch" / "__main__.py").exists()
