"""The W&B mirror: the only file that imports wandb."""

import logging
import netrc
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from distft.config import schema
from distft.tracking import metrics
from distft.tracking.seam import Row, RunInfo, Summary

logger = logging.getLogger(__name__)

SECRET_KEY = re.compile(r"api_?key|secret|passw|credential|(^|_)token$", re.IGNORECASE)
URL_LOGIN = re.compile(r"(?<=://)[^/@\s]+@")


class WandbMirror:
    """Rows as `train/...` and `eval/...` on a step axis of our own, in one W&B run however often the job restarts.

    W&B drops what is logged below its last internal step, and an offline run knows nothing of an earlier one, so the
    internal step is left alone and `start` first logs the rows of metrics.jsonl that this W&B run does not have yet.
    """

    def __init__(self, section: schema.Wandb):
        self.section = section
        self._run: Any = None

    def start(self, info: RunInfo) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")  # read at import: it prints before it sees the settings
        self._run = _init(self.section, info)
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        known = int(self._run.summary.get("step", -1)) if info.first_step else -1
        for row in metrics.read(info.run_dir / metrics.FILE):
            if row["step"] > known:
                self.log(row)

    def log(self, row: Row) -> None:
        values = {
            f"{row['split']}/{key}": float("nan") if value is None else value
            for key, value in row.items()
            if key not in ("step", "split")
        }
        self._run.log({"step": row["step"], **values})

    def close(self, summary: Summary) -> None:
        if summary.samples:
            import wandb

            rows = [[sample.prompt, sample.reference, sample.before, sample.after] for sample in summary.samples]
            self._run.log({"samples": wandb.Table(columns=["prompt", "reference", "before", "after"], data=rows)})
        self._run.finish(exit_code=1 if summary.status == "failed" else 0)
        if self._run.settings.mode == "offline":
            logger.info("W&B was offline; to upload the run: wandb sync %s", Path(self._run.dir).parent)


def _init(section: schema.Wandb, info: RunInfo) -> Any:
    """The W&B run of `info.run_id`; offline without a key, and where the server cannot be reached."""
    import wandb

    def init(mode: str | None) -> Any:
        return wandb.init(
            project=section.project,
            entity=section.entity,
            group=section.group,
            tags=section.tags,
            name=info.name,
            id=info.run_id,
            resume="allow",
            mode=mode,  # type: ignore[arg-type]
            dir=str(info.run_dir),
            config=without_secrets(info.config),
            # disable_git: it would upload a diff of the working tree; finish_timeout: a stop has little time left
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, save_code=False, init_timeout=30, finish_timeout=60
            ),
        )

    if "WANDB_MODE" in os.environ:
        return init(None)
    if not has_key():
        return init("offline")
    try:
        return init("online")
    except wandb.Error as error:
        reason = str(error).partition("\n")[0]
        logger.warning("W&B cannot be reached, the run is tracked offline (%s)", reason)
        wandb.teardown()  # its service still holds the run id of the failed start
        return init("offline")


def has_key() -> bool:
    """Whether the environment or the netrc file holds a key for the W&B server."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except FileNotFoundError:
        return False
    except (OSError, netrc.NetrcParseError) as error:
        logger.warning("%s cannot be read, so W&B has no key (%s)", path, error)
        return False


def without_secrets(value: Any) -> Any:
    """The config without entries that are named like secrets and without logins in URLs."""
    if isinstance(value, dict):
        return {key: without_secrets(item) for key, item in value.items() if not SECRET_KEY.search(str(key))}
    if isinstance(value, list):
        return [without_secrets(item) for item in value]
    return URL_LOGIN.sub("", value) if isinstance(value, str) else value
