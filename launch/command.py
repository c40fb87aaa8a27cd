"""python -m launch: checks everything here, then submits a run, or with --multirun a sweep as one job array."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distft.config.reading.compose import load_with
from distft.config.reading.resolved import to_yaml
from distft.config.schema import Config, Section, Slurm
from distft.errors import ConfigError
from distft.run.folder import RunFolder
from distft.run.owner import Owner
from distft.runtime import slurm
from distft.runtime.files import write_whole
from launch import check, sweep
from launch.record import Record

MULTIRUN = ("--multirun", "-m")


class Launch(Section):
    dry: bool = False
    """Print the batch script and the plan of the job; queue nothing."""


@dataclass
class Planned:
    """A run that passed every check."""

    config: Config
    folder: RunFolder
    warnings: list[str]


def main(argv: list[str]) -> None:
    words = [word for word in argv if word not in MULTIRUN]
    if len(words) == len(argv):
        config, own = _load(words)
        planned, folder, points = [_plan(config)], Path(config.run_root) / ".submitted" / config.name, []
    else:
        points = sweep.grid(words)
        planned, own = _plan_points(points)
        config = planned[0].config
        folder = Path(config.run_root).parent / ".submitted" / Path(config.run_root).name
    for warning in dict.fromkeys(warning for each in planned for warning in each.warnings):
        print(f"warning: {warning}")
    folder = folder.expanduser().absolute() / time.strftime("%Y%m%d-%H%M%S")
    name = folder.parent.name
    if own.dry:
        _show(planned, name, folder)
    else:
        _submit(planned, name, folder, points)


def _load(words: Sequence[str]) -> tuple[Config, Launch]:
    """The config, with its batch arithmetic checked for the job's own number of ranks. Raises ConfigError."""
    config, _ = load_with(words, Launch, program="launch", here=False)
    return load_with(words, Launch, program="launch", world_size=config.cluster.world_size, here=False)


def _plan(config: Config, known: dict[str, list[str]] | None = None) -> Planned:
    """Checks all that needs no GPU. `known`: problems of sections that other points of a sweep have alike."""
    problems: list[str] = []
    if isinstance(config.cluster, Slurm):
        cluster, problems = check.with_time_limit(config.cluster)
        config = config.model_copy(update={"cluster": cluster})
    alike = f"{config.model} {config.data} {config.resume}"
    known = {} if known is None else known
    if alike not in known:
        known[alike] = check.problems_of(config)
    folder, warnings = RunFolder(config), list[str]()
    try:
        warnings = folder.check()
    except ConfigError as error:
        problems += error.problems
    problems += [*known[alike], *_in_use(folder.path)]
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    return Planned(config, folder, warnings)


def _in_use(run_dir: Path) -> list[str]:
    """A run has one owner: a process that trains it, or a job that will."""
    owner = Owner(run_dir, None).other() if run_dir.exists() else None
    if owner is not None:
        return [
            f"name: run folder must have one owner, {run_dir} belongs to {owner.describe()}; "
            "wait for it to end, or give another name="
        ]
    queued = Record.read(run_dir)
    if queued is None or queued.cluster != "slurm" or slurm.job_state(queued.job) not in {"PENDING", "RUNNING"}:
        return []
    return [
        f"name: run folder must have one owner, {run_dir} belongs to job {queued.job}, which is in the queue; "
        f"cancel it (python -m launch.cancel {run_dir}), or give another name="
    ]


def _plan_points(points: Sequence[sweep.Point]) -> tuple[list[Planned], Launch]:
    """Every point checked; raises ConfigError with the problems of all of them."""
    planned: list[Planned] = []
    problems: dict[str, list[str]] = {}
    known: dict[str, list[str]] = {}
    own = Launch()
    for point in points:
        try:
            config, own = _load(point.words)
            root = str(Path(config.run_root) / config.name)
            planned.append(_plan(config.model_copy(update={"run_root": root, "name": point.name}), known))
        except ConfigError as error:
            for problem in error.problems:
                problems.setdefault(problem, []).append(point.name)
    if problems:
        raise ConfigError(
            problem if len(names) == len(points) else f"{problem} [{'; '.join(names)}]"
            for problem, names in problems.items()
        )
    return planned, own


def _submit(planned: list[Planned], name: str, folder: Path, points: list[sweep.Point]) -> None:
    from launch.cluster import submit
    from launch.job import Job
    from launch.status import rows_of, write_csv

    os.umask(0o077)
    folder.mkdir(parents=True, mode=0o700)
    files = [folder / f"config-{number}.yaml" for number in range(len(planned))]
    for file, each in zip(files, planned, strict=True):
        write_whole(file, to_yaml(each.config))
    cluster = planned[0].config.cluster
    submitted = submit(cluster, name, folder, [Job(file) for file in files])
    for (job, log), each in zip(submitted, planned, strict=True):
        Record(job, cluster.name, str(log), time.time()).write(each.folder.path)
    runs = planned[0].folder.path
    if points:
        runs = runs.parent
        sweep.write(runs, points)
        write_csv(runs, rows_of([runs]))
    jobs = submitted[0][0] if len(submitted) == 1 else f"{submitted[0][0].split('_')[0]}, an array of {len(submitted)}"
    print(f"submitted  job {jobs}; {cluster.world_size} ranks each on {cluster.name}")
    print(f"log        {submitted[0][1]}")
    print(f"run        {runs}")
    print(f"watch      python -m launch.status {_short(runs)} --watch")
    print(f"cancel     python -m launch.cancel {_short(runs)}")


def _show(planned: list[Planned], name: str, folder: Path) -> None:
    """What a submission would do."""
    config, cluster = planned[0].config, planned[0].config.cluster
    if isinstance(cluster, Slurm):
        from launch.cluster import script

        print(script(cluster, name, folder, len(planned)))
    data, accumulation = config.data, config.data.global_batch // (config.data.micro_batch * cluster.world_size)
    print("# Plan")
    for each in planned:
        print(f"run      {each.folder.path}")
    print(f"model    {config.model.source}, {config.model.quantization}, {config.adapter.method}")
    print(f"ranks    {cluster.world_size} ({cluster.place}), engine {config.engine.name}")
    print(f"batch    {data.global_batch} rows = {data.micro_batch} x {accumulation} accumulated x {cluster.world_size}")
    print(f"length   {f'{config.steps} steps' if config.steps else f'{config.epochs:g} epochs'}")
    if cluster.time_min:
        print(f"time     {cluster.time_min} minutes at most, then saved and requeued")
    print("dry: nothing was queued")


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
