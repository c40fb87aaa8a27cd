"""What a run was begun with: `config.yaml` and `environment.json` in its folder."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from distft.config.reading.resolved import to_yaml
from distft.config.schema import Config
from distft.errors import ConfigError
from distft.runtime.files import write_whole

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
PACKAGES = [
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "deepspeed",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
]


@dataclass(frozen=True)
class Environment:
    """What a run was begun with; its file also says where and with what it runs."""

    base: dict[str, Any]
    """Identity of the base model: `source`, `revision`, `digest`, and that of a `teacher`."""
    data: str
    """Identity of the tokenised data."""
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    """The same after every restart."""
    merged: dict[str, Any] | None = None
    """Of what a merged run was made, and how."""

    @classmethod
    def read(cls, run_dir: Path, key: str = "run") -> "Environment":
        """Raises ConfigError about `key`, which named the folder."""
        saved = _read(run_dir / ENVIRONMENT, json.loads, key, needs=("base", "data", "run_id"))
        return cls(saved["base"], saved["data"], saved["run_id"], saved.get("merged"))

    def write(self, run_dir: Path) -> None:
        told = {name: value for name, value in asdict(self).items() if value is not None}
        write_whole(run_dir / ENVIRONMENT, json.dumps({**told, **_where()}, indent=2))


def same_base(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two bases, and their teachers, have the same content. One may be told as earlier code told it."""
    digests = {one["digest"], other["digest"]}
    same = len(digests) == 1 or one.get("earlier") in digests or other.get("earlier") in digests
    teachers = one.get("teacher"), other.get("teacher")
    if not same or teachers == (None, None):
        return same
    return None not in teachers and same_base(*teachers)  # type: ignore[arg-type]


def read_config(run_dir: Path, key: str = "run") -> dict[str, Any]:
    """The config as it stands: one of another version of distft may have other keys.

    Raises ConfigError about `key`, which named the folder.
    """
    return _read(run_dir / CONFIG, yaml.safe_load, key)


def write_config(run_dir: Path, config: Config) -> None:
    write_whole(run_dir / CONFIG, to_yaml(config))


def _read(file: Path, parse: Callable[[str], Any], key: str, needs: tuple[str, ...] = ()) -> dict[str, Any]:
    """A mapping that an earlier start wrote."""
    try:
        content = parse(file.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        content = " ".join(str(error).split())
    missing = [name for name in needs if name not in content] if isinstance(content, dict) else []
    if not isinstance(content, dict) or missing:
        got = f"(it has no {', '.join(missing)})" if missing else f"({content})" if content else "(it is empty)"
        raise ConfigError(
            f"{key}: {file} must be what this run wrote, and is not {got}; put it back, or give another {key}="
        )
    return content


def _where() -> dict[str, Any]:
    """Where and with what the run runs."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "command": sys.argv[1:],
        "commit": _commit(),
        "devices": gpus or [f"cpu, {os.cpu_count()} cores"],
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "job": os.environ.get("SLURM_JOB_ID"),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _commit() -> str | None:
    """The commit of the clone that the code runs from; None from an installed wheel."""
    here = Path(__file__).parents[1]
    if not (here.parent / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, encoding="utf-8"
        )
    except FileNotFoundError:  # a container without git
        return None
    return described.stdout.strip() or None
