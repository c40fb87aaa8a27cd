import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tracked_rows import log_steps

from distft.config import schema
from distft.tracking import metrics
from distft.tracking.metrics import MetricsFile

pytest.importorskip("wandb")
from distft.tracking.wandb import WandbMirror, has_key, without_secrets

KILLED_RUN = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from tracked_rows import log_steps
from pathlib import Path
from distft.config import schema
from distft.tracking.build import build
from distft.tracking.seam import RunInfo
tracker = build(schema.Wandb(name="wandb"), global_rank=0)
tracker.start(RunInfo("a-run", Path(sys.argv[1]), "run-0001", [], 40))
log_steps(tracker, 1, 27)
os.kill(os.getpid(), signal.SIGKILL)
"""


def records(path: Path):
    """The records of a `.wandb` file: LevelDB's log format after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, last
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def history_of(path: Path) -> list[dict]:
    return [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for record in records(path)
        if record.WhichOneof("record_type") == "history"
    ]


def test_wandb_offline_holds_every_step_after_a_kill_and_a_resume(info, summary, tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    killed = subprocess.run([sys.executable, "-c", KILLED_RUN, str(tmp_path), str(Path(__file__).parent)], timeout=60)
    assert killed.returncode == -signal.SIGKILL

    truth, mirror = MetricsFile(), WandbMirror(schema.Wandb(name="wandb"))
    truth.start(info(first_step=20))
    mirror.start(info(first_step=20))
    log_steps(mirror, 21, 40)
    mirror.close(summary)

    first, second = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    runs = {(r.run.run_id, r.run.project) for path in (first, second) for r in records(path) if r.run.run_id}
    assert runs == {("run-0001", "distft")}
    config = [item.value_json for r in records(second) for item in r.run.config.update]
    assert config and not any("hush" in value for value in config)
    # W&B's own process may still write when `finish` returns; it is done before the interpreter ends.
    end = time.monotonic() + 20
    while len(history := history_of(second)) < 44 and time.monotonic() < end:
        time.sleep(0.1)
    assert [row["step"] for row in history if "train/loss" in row] == list(range(1, 41))
    assert [row["step"] for row in history if "eval/loss" in row] == [10, 20, 30, 40]
    before = [row["loss"] for row in metrics.read(tmp_path / metrics.FILE) if row["split"] == "train"]
    assert [row["train/loss"] for row in history if "train/loss" in row][:20] == before


def test_wandb_finds_its_key_in_the_environment_or_netrc(tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    assert not has_key()
    netrc.write_text("machine api.wandb.ai login user password x\n")
    assert has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_key()
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert has_key()


def test_wandb_config_leaves_secrets_out_and_token_counts_in():
    config = {"max_new_tokens": 4, "hf_token": "s", "a": [{"api_key": "s", "url": "s3://me:s@host/x?y"}], "lr": 1e-4}
    assert without_secrets(config) == {"max_new_tokens": 4, "a": [{"url": "s3://host/x?y"}], "lr": 1e-4}
