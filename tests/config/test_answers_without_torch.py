"""Help, the composed config and every config error are answered before torch is imported, in a moment."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

SCRIPT = """
import sys
from distft.config.reading.compose import load, load_run
from distft.config.schema import Section
from distft.errors import ConfigError
class Empty(Section): pass
code = 0
try:
    if any(word.startswith("run=") for word in sys.argv):
        load_run(sys.argv[1:], Empty, program="distft.evaluate")
    else:
        load(sys.argv[1:], program="distft.train", world_size=1)
except ConfigError as error:
    print(error, file=sys.stderr)
    code = error.exit_code
except SystemExit as error:
    code = error.code
heavy = {"torch", "transformers", "datasets", "peft", "deepspeed", "wandb", "bitsandbytes"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else code)
"""


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run([sys.executable, "-c", SCRIPT, *words], cwd=folder, env=env, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("words", "code", "stream", "shown"),
    [
        (["--help"], 0, "stdout", ["+exp=llama_qlora", "data.global_batch", "zero3", "--config-dir", "[fsdp]"]),
        (["+exp=llama_lora"], 0, "stdout", []),
        (
            ["+exp=llama_lora", "data.max_lenght=3", "optim.lr=x"],
            2,
            "stderr",
            ["did you mean data.max_length?", "optim.lr:"],
        ),
        (["run=runs/none"], 2, "stderr", ["run: must be a folder"]),
    ],
)
def test_no_path_through_the_config_imports_torch(
    words: list[str], code: int, stream: str, shown: list[str], tmp_path: Path
):
    done = run(tmp_path, *words)
    assert done.returncode == code, done.stderr
    assert all(text in getattr(done, stream) for text in shown)
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [], "nothing may be written"


def test_cfg_job_prints_the_composed_config(tmp_path: Path):
    done = run(tmp_path, "+exp=llama_lora", "engine=zero2", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    shown = yaml.safe_load(done.stdout)
    assert shown["engine"]["name"] == "zero2" and shown["name"] == "llama_lora" and "hydra" not in shown


COMMANDS = [
    "distft.train.command",
    "distft.evaluate.command",
    "distft.export.command",
    "distft.merge.command",
    "distft.data.command",
]
LAUNCHERS = ["launch.command", "launch.check", "launch.status", "launch.cancel", "launch.requeue", "launch.job"]


@pytest.mark.parametrize("module", [*COMMANDS, *LAUNCHERS])
def test_a_command_has_imported_nothing_heavy_when_it_meets_its_config(module: str):
    code = f"import sys, {module}; sys.exit(str({{'torch', 'transformers', 'datasets'}} & set(sys.modules) or ''))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""


def test_output_that_nobody_reads_on_ends_without_a_traceback(tmp_path: Path):
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "distft.train", "--help"]
    done = subprocess.run(words, cwd=tmp_path, env=env, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode in (0, 141) and done.stderr == ""
