"""The parts of a run, in the order in which they depend on each other."""

from pathlib import Path

from distft.data.loader import Loader
from distft.data.pack import plan
from distft.engine import schedule as schedules
from distft.model.adapter import saved
from distft.run.checkpoints import Checkpoints
from distft.run.folder import RunFolder
from distft.runtime.location import choose
from distft.session.held_out import HeldOut
from distft.session.precompute import precompute
from distft.session.session import Session
from distft.session.task_data import TaskData
from distft.tracking import build as trackers
from distft.tracking.seam import Lines, RunInfo, Tracker
from distft.train.loop import Origin, Progress, Run
from distft.train.plan import describe_run


def assemble(session: Session, folder: RunFolder, data: TaskData, earlier: dict[str, TaskData]) -> Run:
    """The run that `session` trains, gone on with from the checkpoint that it is to go on from.

    Every rank calls it. Raises ConfigError before a checkpoint is touched, Stopped where a rank was asked to stop.
    """
    config, ranks = session.config, session.group.ranks
    held_out = HeldOut.of(session, data) if data.prepared.eval else None
    held_out_earlier = {name: HeldOut.of(session, each) for name, each in earlier.items()}
    precompute(session, data)
    loader = _loader(session, data)
    names = list(saved.trainable(session.loaded.model))
    schedule = schedules.build(session.loaded.model, config.adapter, names, loader.num_steps)
    checkpoints = _checkpoints(session, folder)
    newest = checkpoints.find(config.resume)
    state = checkpoints.load(session.engine, newest, schedule) if newest else None
    progress = Progress.of(state) if state else Progress()
    base, digest = session.loaded.identity, data.prepared.digest
    run_id = session.group.from_main(folder.begin(base, digest, state) if ranks.is_main else None)
    if newest:
        checkpoints.go_on_from(newest)
    plan_lines = describe_run(session, data.prepared, loader, folder.path, newest)
    return Run(
        config=config,
        group=session.group,
        engine=session.engine,
        schedule=schedule,
        loader=loader,
        held_out=held_out,
        earlier=held_out_earlier,
        checkpoints=checkpoints,
        tracker=_tracker(session, folder.path, run_id, plan_lines, loader.num_steps, progress.step),
        stop=session.stop,
        progress=progress,
        data_digest=digest,
        origin=Origin(
            run_id=run_id,
            base=base,
            world_size=ranks.world_size,
            engine=config.engine.name,
            resumed_from=None if config.resume in ("auto", "never") else config.resume,
        ),
    )


def _loader(session: Session, data: TaskData) -> Loader:
    config, ranks, corpus = session.config, session.group.ranks, data.prepared.train
    return Loader(
        corpus,
        plan(corpus.lengths, config.data.max_length, config.data.packing),
        data=config.data,
        seed=config.seed,
        steps=config.steps,
        epochs=config.epochs,
        global_rank=ranks.global_rank,
        world_size=ranks.world_size,
        pad_id=data.pad_id,
    )


def _checkpoints(session: Session, folder: RunFolder) -> Checkpoints:
    config, model = session.config, session.loaded.model
    return Checkpoints(
        folder.path,
        session.group,
        weights=saved.weights_file(model),
        keep=config.checkpoint.keep,
        describe=saved.describe(model, config.adapter, choose(config.model.source), session.module.facts),
        beside=session.beside,
        may_publish=folder.is_mine,
    )


def _tracker(session: Session, run: Path, run_id: str, plan: Lines, num_steps: int, first_step: int) -> Tracker:
    config, ranks = session.config, session.group.ranks
    tracker = trackers.build(config.tracking, global_rank=ranks.global_rank)
    tracker.start(
        RunInfo(
            name=config.name,
            run_dir=run,
            run_id=run_id,
            plan=plan,
            num_steps=num_steps,
            world_size=ranks.world_size,
            first_step=first_step,
            config=config.model_dump(mode="json"),
        )
    )
    return tracker
