"""python -m distft.train: from words to a run that is trained to its end, or to a request to stop."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from distft.config.reading.compose import load
from distft.config.schema import Config
from distft.errors import DistftError
from distft.run import status
from distft.run.folder import RunFolder
from distft.runtime import log, slurm
from distft.runtime.env import Ranks, read_ranks
from distft.runtime.stop import StopFlag

if TYPE_CHECKING:
    from distft.runtime.group import Group

logger = logging.getLogger(__name__)


def main(argv: list[str]) -> None:
    start(lambda ranks: load(argv, program="distft.train", world_size=ranks.world_size), read_ranks())


def start(load_config: Callable[[Ranks], Config], ranks: Ranks) -> Path:
    """Trains on this rank, stopping with a checkpoint on a signal and before the job's time limit."""
    stop = StopFlag(slurm.job_ends_at(ranks.job.id) if ranks.job and ranks.is_main else None)
    stop.install()
    return train(load_config(ranks), ranks, stop)


def train(config: Config, ranks: Ranks, stop: StopFlag) -> Path:
    """Trains as `config` says, from the newest checkpoint if there is one; returns the run folder.

    Every rank calls it. Raises Stopped after a checkpoint on request, ConfigError before anything is written.
    """
    folder = RunFolder(config)
    log.start(ranks.global_rank)
    warnings = folder.check()

    from distft.session.session import Session
    from distft.session.task_data import read
    from distft.train.assemble import assemble
    from distft.train.run_to_end import run_to_end

    data = read(config, poll=stop.raise_if_set)
    earlier = {
        name: data.of_another(config.data, path, stop.raise_if_set) for name, path in config.evaluation.earlier.items()
    }
    with folder.owned(ranks):  # the others may make log files once rank 0 owns the folder
        for warning in warnings if ranks.is_main else ():
            logger.warning(warning)
        with Session.open(
            config,
            ranks,
            data,
            logs=folder.path,
            joined=partial(_require_fit_nodes, folder),
            stop=stop,
        ) as session:
            run_to_end(assemble(session, folder, data, earlier), session, folder, data)
    return folder.path


def _require_fit_nodes(folder: RunFolder, group: "Group") -> None:
    """Raises DistftError where the config asks for a look at the nodes and one is not fit."""
    if not folder.config.cluster.preflight:
        return
    from distft.runtime.preflight import preflight

    unfit = preflight(group)
    if not unfit:
        return
    told = ", ".join(f"{node} ({what})" for node, what in unfit.items())
    if group.ranks.is_main:
        status.blame(folder.path, "unfit", f"unfit nodes: {told}", list(unfit))
    group.barrier()  # the first rank that fails takes the others with it
    raise DistftError(f"cluster.preflight: nodes must be fit to train, and are not: {told}")
