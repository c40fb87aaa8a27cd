"""The run folder: who owns it, what it was begun with, and what it holds at the end."""

import contextlib
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from distft.config.reading.resolved import to_yaml
from distft.config.resume import check_resume
from distft.config.schema import Config
from distft.errors import ConfigError, Stopped
from distft.run import status
from distft.run.owner import Owner
from distft.runtime.env import Ranks

logger = logging.getLogger(__name__)

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "deepspeed",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
)


class RunFolder:
    """`<run_root>/<name>`. Only rank 0 writes to it, and only while it is its owner."""

    def __init__(self, config: Config):
        self.config = config
        self.path = Path(config.run_root).expanduser().absolute() / config.name
        self._owner: Owner | None = None
        self._new = [folder for folder in [self.path, *self.path.parents] if not folder.exists()]

    def check(self) -> list[str]:
        """Compares with what the run was begun with, and returns warnings. Writes nothing.

        Raises ConfigError naming every key that may not change, or a folder that cannot be written.
        """
        parent = next(folder for folder in [self.path, *self.path.parents] if folder.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise ConfigError(
                f"run_root: must be a folder that can be written, got {self.config.run_root!r} ({parent} cannot); "
                "give another run_root="
            )
        resume = self.config.resume
        if resume == "never" and (self.path / "config.yaml").exists():
            raise ConfigError(
                f"resume: never needs an unused run folder, got {self.path}; give another name=, or set resume=auto"
            )
        begun = [self.path]
        if resume not in ("auto", "never"):
            begun.append(Path(resume).expanduser().absolute().parent.parent)  # the checkpoint may be of another run
        problems: dict[str, None] = {}
        warnings: dict[str, None] = {}
        for file in [folder / "config.yaml" for folder in begun if (folder / "config.yaml").exists()]:
            wrong, odd = check_resume(_read(file, yaml.safe_load), self.config)
            problems |= dict.fromkeys(wrong)
            warnings |= dict.fromkeys(odd)
        if problems:
            raise ConfigError(problems)
        return list(warnings)

    @contextlib.contextmanager
    def owned(self, ranks: Ranks) -> Iterator[None]:
        """Makes the folder rank 0's own while the block runs, and keeps `status.json` up to how it ends.

        Raises ConfigError naming the owner, if there is another one alive, and DistftError where Slurm has started the
        run too often without progress. A new folder of a run that is refused in the block is removed again.
        """
        if not ranks.is_main:
            yield
            return
        from distft.run.checkpoint_folder import published, step_of  # torch comes with it

        os.umask(0o077)
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._owner = Owner(self.path, ranks.job)
        if taken_over := self._owner.claim():
            logger.warning(taken_over)
        before = status.Status.read(self.path)
        try:
            newest = max(map(step_of, published(self.path / "checkpoints")), default=0)
            limit = self.config.cluster.max_restarts
            status.begin_start(self.path, ranks.job, newest_step=newest, max_restarts=limit)
            yield
            status.end(self.path, "finished")
        except BaseException as error:
            told = str(error).partition("\n")[0] or type(error).__name__
            with contextlib.suppress(OSError):  # a full disk: the error itself says so
                if isinstance(error, ConfigError) and ranks.job is None:
                    before.write(self.path)  # a command that was refused says nothing of the run
                else:
                    status.end(self.path, "stopped" if isinstance(error, Stopped) else "failed", told)
            if isinstance(error, ConfigError):
                self._abandon()
            raise
        finally:
            if self.path.exists():
                with contextlib.suppress(OSError):  # then its process tells that it is gone
                    self._owner.release()

    def is_mine(self) -> bool:
        """Whether this process still owns the folder it claimed."""
        return self._owner is not None and self._owner.is_mine()

    def hung(self, reason: str, nodes: list[str]) -> None:
        """Notes that ranks on `nodes` hang. Called on any one rank: rank 0 may be the one."""
        status.blame(self.path, "hung", reason, nodes)

    def _abandon(self) -> None:
        if self._new and not (self.path / "config.yaml").exists():
            shutil.rmtree(self.path)
            for folder in self._new[1:]:
                with contextlib.suppress(OSError):  # another run is in it by now
                    folder.rmdir()

    def begin(self, base: dict[str, Any], data: str, state: dict[str, Any] | None) -> str:
        """Writes `config.yaml` and `environment.json`; returns the run's id, the same after every restart.

        `base` identifies the base model, `data` the tokenised data, `state` is of the checkpoint to start from. Raises
        ConfigError where base or data is another than the run began with, though its name is the same: files change.
        """
        file = self.path / "environment.json"
        before = _read(file, json.loads) if file.exists() else {}
        now = {"base": base, "data": data}
        if state is not None:  # it may be of another run
            before |= {"base": state["base"], "data": state["data"]["digest"]}
        keys = {"base": "model.source", "data": "data.train"}
        if problems := [
            f"{keys[part]}: content must stay what the run began with, {before[part]}, got {now[part]}; "
            "put it back, or give another name="
            for part in now
            if part in before and before[part] != now[part]
        ]:
            raise ConfigError(problems)
        run_id = before.get("run_id") or uuid.uuid4().hex[:12]
        _replace(self.path / "config.yaml", to_yaml(self.config))
        _replace(file, json.dumps({"run_id": run_id, **now, **environment()}, indent=2))
        return run_id

    def publish_adapter(self, checkpoint: Path, tokenizer: Any) -> Path:
        """Makes `adapter/` of a checkpoint's weights, with the tokenizer; replaces an earlier one whole."""
        final, aside, old = self.path / "adapter", self.path / ".adapter", self.path / ".adapter-old"
        for leftover in (aside, old):
            shutil.rmtree(leftover, ignore_errors=True)
        aside.mkdir(mode=0o700)
        tokenizer.save_pretrained(aside)
        for file in checkpoint.iterdir():
            if not file.name.startswith(("optimizer", "schedule", "state.json", "manifest.json")):
                shutil.copy2(file, aside / file.name)
        if final.exists():
            final.rename(old)
        aside.rename(final)
        shutil.rmtree(old, ignore_errors=True)
        return final


def environment() -> dict[str, Any]:
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
            ["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True
        )
    except FileNotFoundError:  # a container without git
        return None
    return described.stdout.strip() or None


def _read(file: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """A mapping that an earlier start wrote."""
    try:
        content = parse(file.read_text())
    except (ValueError, yaml.YAMLError) as error:
        content = " ".join(str(error).split())
    if not isinstance(content, dict):
        got = f"({content})" if content else "(it is empty)"
        raise ConfigError(
            f"name: {file} must be what this run wrote, and is not {got}; put it back, or give another name="
        )
    return content


def _replace(file: Path, text: str) -> None:
    aside = file.with_name(f".{file.name}")
    with aside.open("w") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    aside.replace(file)
