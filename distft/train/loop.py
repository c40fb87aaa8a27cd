"""The training loop: names the parts, builds none."""

import math
import resource
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch

from distft.config.schema import Config
from distft.data.loader import Loader
from distft.engine.optim import learning_rate
from distft.engine.schedule import Schedule
from distft.engine.seam import Engine
from distft.errors import DistftError
from distft.run.checkpoints import Checkpoints
from distft.runtime.group import Group
from distft.runtime.stop import StopFlag
from distft.session.held_out import HeldOut, write_files
from distft.tracking.seam import Tracker
from distft.train import forgetting

WATCHED_STEPS = 3  # LoRA's A has no gradient before B has moved; a warm-up moves it a little in the first step already
MARGIN_S = 10.0  # before the job's time limit: until all ranks have ended


@dataclass
class Progress:
    """All that changes over a run apart from tensors: what `state.json` holds."""

    step: int = 0
    """Optimizer steps done."""
    tokens_seen: int = 0
    target_tokens_seen: int = 0
    skipped: int = 0
    """Steps whose gradient was not finite."""
    evaluated_at: int | None = None
    best_of: str | None = None
    """The metric that `best` is a value of."""
    best: float | None = None
    best_step: int | None = None
    without_progress: int = 0
    """Evaluations since the best one."""
    no_gradient_yet: list[str] | None = field(default=None)
    """Parameters that had none in the first steps; null: not looked at, or done."""

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Progress":
        """From a checkpoint's `state.json`."""
        return cls(**{part.name: state[part.name] for part in fields(cls)})


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint is from: what `state.json` says besides the progress."""

    run_id: str
    base: dict[str, Any]
    """Identity of the base model."""
    world_size: int
    engine: str
    resumed_from: str | None
    """What `resume` said, where it was a path."""


@dataclass
class Run:
    """The parts of a run, joined."""

    config: Config
    group: Group
    engine: Engine
    schedule: Schedule
    loader: Loader
    held_out: HeldOut | None
    earlier: dict[str, HeldOut]
    """Datasets that were learnt before, measured at each evaluation."""
    checkpoints: Checkpoints
    tracker: Tracker
    stop: StopFlag
    progress: Progress
    data_digest: str
    """Identity of the tokenised data, both splits."""
    origin: Origin


def train(run: Run) -> bool:
    """Trains to the last step, or to a request to stop; a checkpoint is written either way.

    All ranks call it. Returns whether it finished. Raises DistftError on a gradient that is not finite, on a parameter
    without a gradient, and where the last checkpoint cannot be written.
    """
    stopping = False
    while not stopping:
        stopping = _evaluate(run)
        if stopping or _is_done(run):
            break
        stopping = _step(run)
        if run.progress.step % run.config.checkpoint.every == 0:
            save(run)
    save(run)
    run.checkpoints.wait(must_succeed=True)
    return not stopping  # a stop in the last step has left the last evaluation undone


def save(run: Run) -> None:
    """Begins a checkpoint of the steps done so far."""
    position = {"seed": run.config.seed, "step": run.progress.step, "rows": run.progress.step * run.loader.global_batch}
    state = {
        **asdict(run.progress),
        "epoch": run.loader.epoch(run.progress.step),
        "data": {**position, "digest": run.data_digest},
        "scheduler": {
            "schedule": run.config.optim.schedule,
            "lr": run.config.optim.lr,
            "num_steps": run.loader.num_steps,
        },
        "rng": {"rule": "seed of each batch = hash(seed, step, first row)", "seed": run.config.seed},
        **asdict(run.origin),
    }
    run.checkpoints.save(run.engine, run.progress.step, state, run.schedule.state())


def _is_done(run: Run) -> bool:
    patience = run.config.evaluation.patience
    return run.progress.step >= run.loader.num_steps or (
        patience is not None and run.progress.without_progress >= patience
    )


def _step(run: Run) -> bool:
    """One optimizer step; returns whether any rank was asked to stop."""
    began, progress, config = time.perf_counter(), run.progress, run.config
    step, targets = progress.step, run.loader.target_tokens(progress.step)
    lr = learning_rate(config.optim, step, run.loader.num_steps)
    run.schedule.begin(step)
    losses = [
        run.engine.accumulate(batch, targets, last=number == run.loader.accumulation)
        for number, batch in enumerate(run.loader.micro_batches(step), start=1)
    ]
    _watch_gradients(run)
    run.schedule.before_update(run.engine)
    grad_norm = run.engine.step(lr)
    table = run.group.table(torch.stack(losses).sum().item(), run.stop.is_set, _peak_memory(run.group.device))
    loss = table[:, 0].sum().item() / targets
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        _skip_or_stop(run, loss, grad_norm)
    else:
        run.schedule.after_update(run.engine, step)
    progress.step += 1
    progress.tokens_seen += run.loader.tokens(step)
    progress.target_tokens_seen += targets
    seconds = time.perf_counter() - began
    run.tracker.log(
        {
            "step": progress.step,
            "split": "train",
            "loss": loss,
            "grad_norm": grad_norm,
            "lr": lr,
            "tokens": run.loader.tokens(step),
            "target_tokens": targets,
            "tokens_per_second": run.loader.tokens(step) / seconds,
            "step_seconds": seconds,
            "peak_memory_bytes": int(table[:, 2].max()),
        }
    )
    # What the next step may take, and a save: less sudden than the last one, so that one slow step is not forgotten.
    needed = 1.5 * seconds + 2 * run.checkpoints.save_seconds + MARGIN_S
    run.stop.reserve_s = max(needed, 0.9 * run.stop.reserve_s)
    return bool(table[:, 1].any())


def _evaluate(run: Run) -> bool:
    """Held-out loss and metrics, if it is their turn; returns whether any rank was asked to stop meanwhile."""
    progress, every = run.progress, run.config.evaluation.every
    due = progress.step == 0 or _is_done(run) or (every is not None and progress.step % every == 0)
    if not due or run.held_out is None or progress.evaluated_at == progress.step:
        return False
    scores = run.held_out.score()
    if scores is None:
        return True
    numbers = dict(scores.numbers)
    for name, rows in run.earlier.items():
        again = rows.score()
        if again is None:
            return True
        numbers |= forgetting.named(name, again.numbers)
    progress.evaluated_at = progress.step
    run.tracker.log({"step": progress.step, "split": "eval", **numbers})
    if run.group.ranks.is_main:
        write_files(scores, run.checkpoints.folder.parent)
    if _is_best(progress, run.config, scores.numbers):
        progress.best_step, progress.without_progress = progress.step, 0
        if progress.step > 0 and every is not None:
            save(run)
    else:
        progress.without_progress += 1
    return False


def _is_best(progress: Progress, config: Config, numbers: dict[str, float]) -> bool:
    """Notes the metric's value if it is the best so far. One that is not finite never is."""
    metric, better = config.evaluation.metric, config.task.traits.is_better
    value = numbers[metric]
    if progress.best_of != metric:  # another one may be asked for when a run goes on
        progress.best_of, progress.best = metric, None
    if math.isnan(value):
        return False
    if progress.best is not None and not better(metric, value, progress.best):
        return False
    progress.best = value
    return True


def _watch_gradients(run: Run) -> None:
    """Stops a run in which something that is said to train gets no gradient."""
    progress = run.progress
    if progress.step == 0:
        progress.no_gradient_yet = [n for n, _ in run.engine.trainable_state() if n not in run.schedule.late]
    if progress.no_gradient_yet is None:
        return
    moving = {name for name, gradient in run.engine.gradients() if gradient.any()}
    progress.no_gradient_yet = [name for name in progress.no_gradient_yet if name not in moving]
    if progress.step + 1 < min(WATCHED_STEPS, run.loader.num_steps):
        return
    silent, progress.no_gradient_yet = progress.no_gradient_yet, None
    if silent and progress.step > 0:
        raise DistftError(
            f"adapter: every parameter that trains must get a gradient, {len(silent)} had none in "
            f"{progress.step + 1} steps: {', '.join(silent[:5])}; leave them out of adapter.targets or modules_to_save"
        )


def _skip_or_stop(run: Run, loss: float, grad_norm: float) -> None:
    """A gradient that is not finite was not applied: count the step as skipped, or end the run."""
    run.progress.skipped += 1
    if run.progress.skipped <= run.config.optim.skip_nonfinite:
        return
    run.checkpoints.wait()
    last = run.checkpoints.newest()
    step = run.progress.step
    raise DistftError(
        f"loss and gradient must be finite, got loss {loss} and gradient norm {grad_norm} in step {step + 1} "
        f"(rows {run.loader.rows(step).tolist()[:16]} of the data); the last good checkpoint is {last or 'none'}: "
        f"lower optim.lr, or allow such steps with optim.skip_nonfinite={run.progress.skipped}"
    )


def _peak_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
