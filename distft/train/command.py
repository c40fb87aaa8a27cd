"""python -m distft.train: the one place where the parts meet."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distft.config.reading.compose import load
from distft.config.schema import Config
from distft.errors import DistftError, Stopped
from distft.run import status
from distft.run.folder import RunFolder
from distft.run.steps import folder_name
from distft.runtime import log, slurm
from distft.runtime.env import Ranks, read_ranks
from distft.runtime.stop import StopFlag

if TYPE_CHECKING:
    from distft.data.prepare import Prepared
    from distft.task.seam import Task
    from distft.train.loop import Run

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

    from distft.data.prepare import alone, prepare
    from distft.model import load as model
    from distft.model.tokenizer import load_tokenizer
    from distft.task import build as tasks

    model.check(config.model, config.data.max_length)
    tokenizer = load_tokenizer(config.model, config.data.chat_template)
    task = tasks.build(config.task)
    prepared = prepare(config.data, task.reader(tokenizer, config.data, None), poll=stop.raise_if_set)
    earlier = {}
    for name, path in config.evaluation.earlier.items():
        again = alone(config.data, path)
        earlier[name] = prepare(again, task.reader(tokenizer, again, prepared.facts), poll=stop.raise_if_set)

    with folder.owned(ranks):
        for warning in warnings if ranks.is_main else ():
            logger.warning(warning)
        from distft.runtime.group import Group

        group = Group(ranks)  # the others may make log files once rank 0 owns the folder
        log.to_folder(folder.path, ranks.global_rank)
        if config.cluster.preflight:
            _require_fit_nodes(group, folder)
        run = _assemble(config, group, folder, task, tokenizer.pad_token_id, prepared, earlier, stop)
        _train(run, folder, tokenizer, prepared)
        group.leave()
    return folder.path


def _require_fit_nodes(group: Any, folder: RunFolder) -> None:
    from distft.runtime.preflight import preflight

    unfit = preflight(group)
    if not unfit:
        return
    told = ", ".join(f"{node} ({what})" for node, what in unfit.items())
    if group.ranks.is_main:
        status.blame(folder.path, "unfit", f"unfit nodes: {told}", list(unfit))
    group.barrier()  # the first rank that fails takes the others with it
    raise DistftError(f"cluster.preflight: nodes must be fit to train, and are not: {told}")


def _assemble(
    config: Config,
    group: Any,
    folder: RunFolder,
    task: "Task",
    pad_id: int,
    prepared: "Prepared",
    earlier: dict[str, "Prepared"],
    stop: StopFlag,
) -> "Run":
    """Joins the parts: base, adapter, engine, data, tracker, checkpoints, in the order in which they depend."""
    from distft.data.loader import Loader
    from distft.data.pack import plan
    from distft.engine import schedule as schedules
    from distft.model.adapter import saved
    from distft.run.checkpoints import Checkpoints
    from distft.runtime.location import choose
    from distft.session.held_out import held_out
    from distft.session.precompute import precompute
    from distft.session.session import set_up
    from distft.train.loop import Progress, Run
    from distft.train.plan import describe_run

    facts, ranks = prepared.facts, group.ranks
    stage = set_up(
        config,
        group,
        task.architecture(facts),
        lambda loaded: task.module(loaded, facts),
        poll=lambda: stop.raise_if_any(group),
    )
    engine, module, loaded = stage.engine, stage.module, stage.loaded
    sides = {"train": prepared.train, "eval": prepared.eval}
    precompute(module, engine, sides, prepared.folder, config, group, pad_id, stop)

    loader = Loader(
        prepared.train,
        plan(prepared.train.lengths, config.data.max_length, config.data.packing),
        data=config.data,
        seed=config.seed,
        steps=config.steps,
        epochs=config.epochs,
        global_rank=ranks.global_rank,
        world_size=ranks.world_size,
        pad_id=pad_id,
    )
    schedule = schedules.build(loaded.model, config.adapter, list(saved.trainable(loaded.model)), loader.num_steps)
    checkpoints = Checkpoints(
        folder.path,
        group,
        weights=saved.weights_file(loaded.model),
        keep=config.checkpoint.keep,
        describe=saved.describe(loaded.model, config.adapter, choose(config.model.source), module.facts),
        beside=stage.beside,
        may_publish=folder.is_mine,
    )
    newest = checkpoints.find(config.resume)
    state = checkpoints.load(engine, newest, schedule) if newest else None
    progress = Progress.of(state) if state else Progress()
    run_id = group.from_main(folder.begin(loaded.identity, prepared.digest, state) if ranks.is_main else None)
    if newest:
        checkpoints.go_on_from(newest)
    plan_lines = describe_run(config, group, loaded, loader, prepared, folder.path, newest)
    tracker = _tracker(config, folder, ranks, run_id, plan_lines, loader.num_steps, progress.step)
    return Run(
        config=config,
        group=group,
        engine=engine,
        schedule=schedule,
        loader=loader,
        held_out=held_out(prepared.eval, task, config, facts, ranks, pad_id) if prepared.eval else None,
        earlier={
            name: held_out(each.eval, task, config, facts, ranks, pad_id)
            for name, each in earlier.items()
            if each.eval is not None
        },
        checkpoints=checkpoints,
        tracker=tracker,
        stop=stop,
        progress=progress,
        data_digest=prepared.digest,
        facts={
            "run_id": run_id,
            "base": loaded.identity,
            "world_size": ranks.world_size,
            "engine": config.engine.name,
            "resumed_from": None if config.resume in ("auto", "never") else config.resume,
        },
    )


def _tracker(
    config: Config, folder: RunFolder, ranks: Ranks, run_id: str, plan: Any, num_steps: int, first_step: int
) -> Any:
    from distft.tracking.build import build as build_tracker
    from distft.tracking.seam import RunInfo

    tracker = build_tracker(config.tracking, global_rank=ranks.global_rank)
    tracker.start(
        RunInfo(
            name=config.name,
            run_dir=folder.path,
            run_id=run_id,
            plan=plan,
            num_steps=num_steps,
            world_size=ranks.world_size,
            first_step=first_step,
            config=config.model_dump(mode="json"),
        )
    )
    return tracker


def _train(run: "Run", folder: RunFolder, tokenizer: Any, prepared: Any) -> None:
    """Trains, publishes the adapter, and tells the tracker how it ended."""
    from distft.runtime.hang import watch
    from distft.session.replies import Samples
    from distft.tracking.seam import Summary
    from distft.train import forgetting, loop

    samples = Samples(run.engine, prepared.prompts, tokenizer, run.config.evaluation, folder.path, run.group)
    try:
        if run.progress.step == 0:
            samples.before()
        with watch(run.group, folder.path / "logs", run.config.runtime.hang_after, folder.hung):
            finished = loop.train(run)
    except BaseException:
        run.tracker.close(Summary("failed", lines=[("log", str(folder.path / "logs"))]))
        raise
    last = run.checkpoints.folder / folder_name(run.progress.step)
    if not finished:
        run.tracker.close(Summary("stopped", lines=[("checkpoint", str(last))]))
        run.group.barrier()  # the first rank that ends takes the others with it
        raise Stopped(f"stopped by {run.stop.reason or 'another rank'}; run the same command to go on")
    best = run.progress.best_step if run.config.evaluation.patience is not None else None
    if best == 0:
        logger.warning("no evaluation was better than the one before training: adapter/ is made of the last checkpoint")
    chosen = run.checkpoints.folder / folder_name(best) if best else last
    if not chosen.exists():  # its save failed, or the run took its progress from another run's folder
        logger.warning("the best checkpoint, %s, is not there: adapter/ is made of the last one", chosen)
        best, chosen = None, last
    replies = samples.after()
    if run.group.ranks.is_main:
        adapter = folder.publish_adapter(chosen, tokenizer)
        forgotten = forgetting.report(folder.path)
        run.tracker.close(
            Summary(
                "finished",
                lines=[
                    *forgotten,
                    ("adapter", f"{adapter} (step {run.progress.best_step if best else run.progress.step})"),
                    ("report", str(folder.path / "report.html")),
                ],
                samples=replies,
                next_commands=[
                    f"python -m distft.evaluate run={_shown(folder.path)}",
                    f"python -m distft.export run={_shown(folder.path)} export.to=merged",
                ],
            )
        )
    run.group.barrier()


def _shown(path: Path) -> str:
    """`path` as short as it can be typed."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
