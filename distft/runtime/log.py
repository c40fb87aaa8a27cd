"""Logging: everything goes to one file a rank; the console shows what a person should read.

| logger            | `<run>/logs/rank-%05d.log` | console of rank 0 | console of the others |
| ----------------- | -------------------------- | ----------------- | --------------------- |
| `distft`          | DEBUG                      | INFO              | ERROR                 |
| everything else   | INFO                       | ERROR             | ERROR                 |

So in distft: `info` is for the reader of the console, `debug` for the reader of the file.
"""

import logging
import os
import sys
from pathlib import Path
from types import TracebackType

QUIET = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # transformers follows it too
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # torch's C++ side writes past Python's logging
}


class Adopted(logging.Logger):
    """A library's logger that cannot leave the tree: it writes no console of its own and always propagates.

    transformers, datasets, DeepSpeed and torch each give their logger a console handler and stop propagation when they
    are imported, which is after `setup`.
    """

    def addHandler(self, handler: logging.Handler) -> None:  # noqa: N802
        if not _is_console(handler):
            super().addHandler(handler)

    @property
    def propagate(self) -> bool:
        return True

    @propagate.setter
    def propagate(self, value: bool) -> None:
        pass


class Console(logging.StreamHandler):
    """Writes to whatever `sys.stderr` is at the time: a progress bar replaces it to keep its own line last."""

    def __init__(self, level: int) -> None:
        logging.Handler.__init__(self, level)

    @property
    def stream(self):  # type: ignore[no-untyped-def]
        return sys.stderr

    def filter(self, record: logging.LogRecord) -> bool:
        # wandb's failures are for the tracker to report: they don't fail the run
        return _is_ours(record) or (record.levelno >= logging.ERROR and not _is_wandb(record))

    def format(self, record: logging.LogRecord) -> str:
        prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return prefix + record.getMessage()  # the traceback is in the file


class RankFile(logging.FileHandler):
    """The rank's log file: it takes everything of distft, and others from INFO on."""

    def filter(self, record: logging.LogRecord) -> bool:
        least = logging.WARNING if _is_wandb(record) else logging.INFO  # wandb keeps such a file itself
        return _is_ours(record) or record.levelno >= least


def start(global_rank: int) -> None:
    """Keep libraries off the console: of ranks other than 0 it shows errors only.

    Call it on every rank before torch, transformers or deepspeed are imported.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    _replace(Console, Console(logging.INFO if global_rank == 0 else logging.ERROR))
    logging.getLogger().setLevel(logging.INFO)
    logging.getLogger("distft").setLevel(logging.DEBUG)
    logging.captureWarnings(True)
    _adopt()


def to_folder(run_dir: Path, global_rank: int) -> None:
    """Write everything to `<run_dir>/logs/rank-%05d.log` besides, from here on."""
    folder = run_dir / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    file = RankFile(folder / f"rank-{global_rank:05d}.log", encoding="utf-8", errors="backslashreplace")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    _replace(RankFile, file)
    _adopt()
    _log_crashes(file)


def _replace(kind: type[logging.Handler], handler: logging.Handler) -> None:
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, kind)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)


def _adopt() -> None:
    logging.setLoggerClass(Adopted)
    for name in list(logging.root.manager.loggerDict):
        logger = logging.getLogger(name)
        for handler in [handler for handler in logger.handlers if _is_console(handler)]:
            logger.removeHandler(handler)
        logger.propagate = True
    for module in ("transformers.utils.logging", "datasets.utils.logging"):
        if module in sys.modules:
            sys.modules[module].disable_progress_bar()


def _log_crashes(file: logging.Handler) -> None:
    """Note an uncaught exception in the rank's file, then let it take its way to stderr."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        record = logging.LogRecord("distft", logging.CRITICAL, "", 0, "uncaught", None, (kind, error, trace))
        file.handle(record)
        sys.__excepthook__(kind, error, trace)

    sys.excepthook = hook


def _is_console(handler: logging.Handler) -> bool:
    standard = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    return isinstance(handler, logging.StreamHandler) and handler.stream in standard


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name == "distft" or record.name.startswith("distft.")


def _is_wandb(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] == "wandb"
