"""The run folder: who owns it, what it was begun with, and what it holds at the end."""

import contextlib
import dataclasses
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distft.config.resume import check_resume
from distft.config.schema import Config
from distft.errors import ConfigError, Stopped
from distft.run import status
from distft.run.damage import MANIFEST
from distft.run.identity import CONFIG, ENVIRONMENT, Environment, read_config, same_base, write_config
from distft.run.owner import Owner
from distft.run.steps import State, published, step_of
from distft.runtime.env import Ranks
from distft.runtime.files import sweep, whole_folder

logger = logging.getLogger(__name__)


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
        if resume == "never" and (self.path / CONFIG).exists():
            raise ConfigError(
                f"resume: never needs an unused run folder, got {self.path}; give another name=, or set resume=auto"
            )
        begun = [self.path]
        if resume not in ("auto", "never"):
            begun.append(Path(resume).expanduser().absolute().parent.parent)  # the checkpoint may be of another run
        problems: dict[str, None] = {}
        warnings: dict[str, None] = {}
        for folder in [folder for folder in begun if (folder / CONFIG).exists()]:
            wrong, odd = check_resume(read_config(folder, "name"), self.config)
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
        os.umask(0o077)
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._owner = Owner(self.path, ranks.job)
        if taken_over := self._owner.claim():
            logger.warning(taken_over)
        sweep(self.path)
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
        if self._new and not (self.path / CONFIG).exists():
            shutil.rmtree(self.path)
            for folder in self._new[1:]:
                with contextlib.suppress(OSError):  # another run is in it by now
                    folder.rmdir()

    def begin(self, base: dict[str, Any], data: str, state: State | None) -> str:
        """Writes `config.yaml` and `environment.json`; returns the run's id, the same after every restart.

        `base` identifies the base model, `data` the tokenised data, `state` is of the checkpoint to start from. Raises
        ConfigError where base or data is another than the run began with, though its name is the same: files change.
        """
        now = Environment(base, data)
        began = Environment.read(self.path, "name") if (self.path / ENVIRONMENT).exists() else now
        now = dataclasses.replace(now, run_id=began.run_id)
        if state is not None:  # it may be of another run
            began = Environment(state["base"], state["data"]["digest"])
        problems = [
            f"{key}: content must stay what the run began with, {before}, got {after}; "
            "put it back, or give another name="
            for key, same, before, after in (
                ("model.source", same_base(began.base, now.base), _told(began.base), _told(now.base)),
                ("data.train", began.data == now.data, began.data, now.data),
            )
            if not same
        ]
        if problems:
            raise ConfigError(problems)
        write_config(self.path, self.config)
        now.write(self.path)
        return now.run_id

    def publish_adapter(self, checkpoint: Path, tokenizer: Any) -> Path:
        """Makes `adapter/` of a checkpoint's weights, with the tokenizer; replaces an earlier one whole."""
        final = self.path / "adapter"
        with whole_folder(final, alone=True, replace=True) as folder:
            tokenizer.save_pretrained(folder)
            for file in checkpoint.iterdir():
                if not file.name.startswith(("optimizer", "schedule", "state.json", MANIFEST)):
                    shutil.copy2(file, folder / file.name)
        return final


def _told(base: dict[str, Any]) -> str:
    """A base in a sentence: where it is from, and its digest."""
    return f"{base['source']} with digest {base['digest'][:14]}"
