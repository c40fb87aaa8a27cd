from pathlib import Path

import pytest

from distft.tracking.seam import RunInfo, Sample, Summary


@pytest.fixture
def info(tmp_path: Path):
    def make(first_step: int = 0, num_steps: int = 40) -> RunInfo:
        plan = [("model", "tiny [float32]"), ("data", "1,000 rows " * 12)]
        config = {"seed": 0, "data": {"train": "https://me:hush@host/x", "max_length": 8}, "hf_token": "hush"}
        return RunInfo("a-run", tmp_path, "run-0001", plan, num_steps, first_step, config)

    return make


@pytest.fixture
def summary() -> Summary:
    samples = [Sample("<script>alert(1)</script>", "a & b", "before \x1b[31mred", "after")]
    return Summary("finished", [("adapter", "runs/a-run/adapter")], samples, ["python -m distft.evaluate run=runs/a"])
