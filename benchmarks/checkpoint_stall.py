"""How long a checkpoint holds up the training loop.

    python -m benchmarks.checkpoint_stall

100 MB of adapter and AdamW moments. The stall is the time that the loop spends in `save()`. What the writing thread
then takes from the step beside it, on a machine with few cores, is shown apart: steps with a writer against steps
without one.
"""

import statistics
import sys
import time

from benchmarks import arms, measure
from benchmarks.measure import Arm, Target, Turns, paired_ratio, report, require
from distft.tracking.seam import Row, RunInfo, Summary
from distft.train import loop
from distft.train.loop import Run

LIMIT_SECONDS = 0.1
MIN_BYTES = 100e6


class _Stop(Exception):
    pass


class _StepTimes:
    """A tracker that saves after every other step, as the loop would, and notes what that cost."""

    def __init__(self, run: Run, rounds: int):
        self.run, self.rounds = run, rounds
        self.stalls: list[float] = []
        self.cpu_stalls: list[float] = []
        self.steps: dict[bool, list[float]] = {True: [], False: []}
        self.saving = False

    def start(self, info: RunInfo) -> None:
        pass

    def log(self, row: Row) -> None:
        if row["split"] != "train" or row["step"] <= 2:
            return
        self.steps[self.saving].append(row["step_seconds"])
        if self.saving:
            self.run.checkpoints.wait()  # the next step must be one without a writer beside it
        self.saving = not self.saving
        if self.saving:
            began, began_cpu = time.perf_counter(), time.thread_time()
            loop.save(self.run)
            self.stalls.append(time.perf_counter() - began)
            self.cpu_stalls.append(time.thread_time() - began_cpu)
        if len(self.steps[True]) == self.rounds:
            raise _Stop

    def close(self, summary: Summary) -> None:
        pass


def arm(turns: Turns, rounds: int, overrides: list[str]) -> None:
    usual = loop.train

    def body(run: Run) -> None:
        turns.wait()
        times = _StepTimes(run, rounds)
        run.tracker = times
        try:
            usual(run)
        except _Stop:
            run.checkpoints.wait()
        state = [*run.engine.trainable_state(), *run.engine.optimizer_state()]
        num_bytes = sum(tensor.nbytes for _, tensor in state)
        # The first save makes its host buffers; it is a save like any other.
        stalls = {"stalls": times.stalls, "cpu_stalls": times.cpu_stalls}
        turns.done({**stalls, "with": times.steps[True], "without": times.steps[False], "bytes": num_bytes})

    arms.run_loop(overrides, body)


def main() -> int:
    parser = measure.parser(__doc__)
    parser.set_defaults(blocks=6)
    args = parser.parse_args()
    overrides = ["name=arm", "adapter.r=32", "data.max_length=128", "data.global_batch=1", "optim.warmup=0"]
    if args.arm:
        arm(Turns(), args.blocks, overrides)
        return 0
    with Arm("benchmarks.checkpoint_stall", "ours", f"--blocks={args.blocks}") as one:
        result = one.run()
    require(result["bytes"] >= MIN_BYTES, f"{result['bytes']} bytes of state, {MIN_BYTES:.0f} wanted")
    require(len(result["stalls"]) >= args.blocks, f"{len(result['stalls'])} saves")
    worst, median = max(result["stalls"]), statistics.median(result["stalls"])
    cpu = statistics.median(result["cpu_stalls"])
    slowed = paired_ratio(result["with"], result["without"][: len(result["with"])])
    figures = [
        f"{result['bytes'] / 1e6:.0f}",
        f"{median * 1e3:.0f}",
        f"{worst * 1e3:.0f}",
        f"{cpu * 1e3:.0f}",
        str(slowed),
    ]
    columns = [
        "MB of state",
        "stall ms (median)",
        "stall ms (worst)",
        "stall CPU ms",
        "step with a writer / without (quartiles)",
    ]
    targets = [Target("median stall in seconds", median, LIMIT_SECONDS)]
    return report("checkpoint_stall", args, columns, [figures], targets, measured=result)


if __name__ == "__main__":
    sys.exit(main())
