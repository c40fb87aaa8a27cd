"""A run whose words, files and data hold letters that are not ASCII, where the locale knows nothing else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from tests.resume import runs

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": "1"}
"""An ASCII locale, with what Python does about it switched off."""
ALL = """
import os, warnings
from distft.evaluate.command import main as evaluate
from distft.runtime.command import run_command
from distft.train.command import main as train

def main(words):
    # A text whose encoding is the locale's: by the file that opens it.
    warnings.filterwarnings("error", category=EncodingWarning, module=r"distft\\.|launch\\.")
    *begun, resume, run = words
    for command, its in ((train, [*begun, "steps=2"]), (train, [*begun, resume, "steps=4"]), (evaluate, [run])):
        before = dict(os.environ)
        command(its)
        os.environ.clear()
        os.environ.update(before)
    print("\\u5b8c\\u6210 \\udc80")

run_command(main)
"""


def test_a_run_trains_goes_on_and_is_evaluated_in_an_ascii_locale(tiny, tmp_path):
    run = tmp_path / "läufe" / "run"
    words = dict(word.split("=", 1) for word in tiny(tmp_path / "läufe"))
    for key, place in (("model.source", "基座"), ("data.train", "数据.jsonl"), ("data.eval", "测试.jsonl")):
        copy = shutil.copytree if Path(words[key]).is_dir() else shutil.copy
        words[key] = str(copy(words[key], tmp_path / place))
    words |= {"evaluation.samples": "2", "evaluation.max_new_tokens": "4"}
    held_out = Path(words["data.eval"])
    held_out.write_text(held_out.read_text().replace('"content": "', '"content": "茶 '), encoding="utf-8")
    line = [f"{key}='{value}'" if not value.isascii() else f"{key}={value}" for key, value in words.items()]
    line += [
        f"evaluation.earlier={{before: '{held_out}'}}",
        f"resume='{run / 'checkpoints' / 'step-00000002'}'",
        f"run='{run}'",
    ]
    ended = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", "-c", ALL, *line], env=os.environ | ASCII, capture_output=True
    )
    output = (ended.stdout + ended.stderr).decode()
    assert ended.returncode == 0, output
    assert "完成 \\udc80" in output and "from step-00000002" in output
    assert [row["step"] for row in runs.rows(run, "train")] == [1, 2, 3, 4]
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert [config["data"]["train"], config["model"]["source"]] == [words["data.train"], words["model.source"]]
    result = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    assert result["data"]["source"] == str(held_out) and "茶" in str(result["samples"])
