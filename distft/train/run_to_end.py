"""A run from its first step here to its end: trained, its adapter published, and how it ended told."""

import logging
from pathlib import Path

from distft.errors import Stopped
from distft.run.folder import RunFolder
from distft.run.steps import folder_name
from distft.runtime.hang import watch
from distft.session.replies import Replies
from distft.session.session import Session
from distft.session.task_data import TaskData
from distft.tracking import metrics
from distft.tracking.seam import Sample, Summary
from distft.train import loop
from distft.train.forgetting import Forgetting
from distft.train.loop import Run

logger = logging.getLogger(__name__)


def run_to_end(run: Run, session: Session, folder: RunFolder, data: TaskData) -> None:
    """Trains, publishes the adapter, and tells the tracker how it ended. Every rank calls it.

    Raises what the loop raises, and Stopped after a checkpoint on request.
    """
    replies = Replies(session, data)
    try:
        if run.progress.step == 0:
            replies.keep(folder.path)
        with watch(run.group, folder.path / "logs", run.config.runtime.hang_after, folder.hung):
            finished = loop.train(run)
    except BaseException:
        run.tracker.close(Summary("failed", lines=[("log", str(folder.path / "logs"))]))
        raise
    if not finished:
        run.tracker.close(Summary("stopped", lines=[("checkpoint", str(_checkpoint(run, run.progress.step)))]))
        run.group.barrier()  # the first rank that ends takes the others with it
        raise Stopped(f"stopped by {run.stop.reason or 'another rank'}; run the same command to go on")
    step = _step_to_publish(run)
    samples = replies.beside_kept(folder.path)
    if run.group.ranks.is_main:
        adapter = folder.publish_adapter(_checkpoint(run, step), data.tokenizer)
        run.tracker.close(_finished(folder.path, f"{adapter} (step {step})", samples))


def _checkpoint(run: Run, step: int) -> Path:
    return run.checkpoints.folder / folder_name(step)


def _step_to_publish(run: Run) -> int:
    """The step whose checkpoint becomes `adapter/`: the best under early stopping, if it is there."""
    last, best = run.progress.step, run.progress.best_step
    if run.config.evaluation.patience is None or best is None:
        return last
    if best == 0:
        logger.warning("no evaluation was better than the one before training: adapter/ is made of the last checkpoint")
        return last
    if not _checkpoint(run, best).exists():  # its save failed, or the run took its progress from another run's folder
        missing = _checkpoint(run, best)
        logger.warning("the best checkpoint, %s, is not there: adapter/ is made of the last one", missing)
        return last
    return best


def _finished(run: Path, adapter: str, samples: list[Sample]) -> Summary:
    forgotten = Forgetting.of(metrics.read(run / metrics.FILE))
    if forgotten.datasets:
        forgotten.write(run)
    return Summary(
        "finished",
        lines=[*forgotten.lines(), ("adapter", adapter), ("report", str(run / "report.html"))],
        samples=samples,
        next_commands=[
            f"python -m distft.evaluate run={_shown(run)}",
            f"python -m distft.export run={_shown(run)} export.to=merged",
        ],
    )


def _shown(path: Path) -> str:
    """`path` as short as it can be typed."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
