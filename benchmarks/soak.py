"""One run on a real Slurm of two nodes through many random kills: a rank, the job, a node. Did it end in the same bits?

    python -m benchmarks.soak --kills 100

Needs what slurm/README.md names. The run is a tiny Llama on two ranks, one a node, with a checkpoint every ten steps; a
kill is survived if the run starts again and loses no saved step. The reference is the same run on two processes of
this machine that nothing interrupts.
"""

import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks import measure
from benchmarks.measure import Target, report
from distft.run.status import Status
from distft.run.steps import published, step_of
from distft.runtime import slurm
from tests.resume.tiny_run import SHAPE, write_dialogues, write_tokenizer
from tests.slurm.real_cluster import RealCluster, reached, run, until

KINDS = {"rank": 0.6, "job": 0.25, "node": 0.15}
WAIT_S = 180.0


def words(folder: Path, steps: int) -> list[str]:
    tokenizer = folder / "tokenizer" if (folder / "tokenizer").exists() else write_tokenizer(folder / "tokenizer")
    data = folder / "train.jsonl" if (folder / "train.jsonl").exists() else write_dialogues(folder / "train.jsonl", 1)
    return [
        "model=hub",
        f"model.source={tokenizer}",
        f"model.random_init={SHAPE}",
        "model.dtype=float32",
        "data=jsonl",
        f"data.train={data}",
        "data.eval_fraction=0",
        "data.max_length=64",
        "data.global_batch=2",
        f"data.cache_dir={folder / 'cache'}",
        "adapter.r=4",
        "adapter.dropout=0.1",
        f"steps={steps}",
        "checkpoint.every=10",
        "name=soak",
    ]


def adapter(run_dir: Path) -> str:
    return hashlib.sha256((run_dir / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def straight(folder: Path, steps: int) -> str:
    """The adapter of the run that nothing interrupts."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "distft.train",
    ]
    subprocess.run([*command, *words(folder, steps), f"run_root={folder / 'straight'}"], check=True, stdout=-3)
    return adapter(folder / "straight" / "soak")


def kill(cluster: RealCluster, kind: str, job: str, folder: Path, draw: random.Random) -> None:
    node = draw.choice((1, 2))
    if kind == "rank":
        for rank in cluster.ranks_on(node, folder):
            os.kill(rank, signal.SIGKILL)
    elif kind == "job":
        run("scontrol", "requeue", job)
    else:
        cluster.call("crash", str(node))
        until(lambda: slurm.job_state(job) not in ("RUNNING", "COMPLETING"), WAIT_S)
        cluster.call("start", str(node))


def main() -> int:
    parser = measure.parser(__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=3500)
    parser.add_argument("--seed", type=int, default=0, help="of the kills; also names the cluster and the result")
    args = parser.parse_args()
    draw = random.Random(args.seed)
    survived, lost = Counter[str](), Counter[str]()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cluster = RealCluster(f"soak{args.seed}")
        try:
            slurm_words = ["cluster=slurm", "cluster.nodes=2", "cluster.max_restarts=100000", "cluster.time_min=1000"]
            run_dir = folder / "runs" / "soak"
            job = cluster.launch(run_dir, [*words(folder, args.steps), f"run_root={folder / 'runs'}", *slurm_words])
            for number in range(args.kills):
                first = Status.read(run_dir).start_step + 1
                reached(run_dir, first, WAIT_S)
                time.sleep(draw.uniform(0, 2))
                before = Status.read(run_dir)
                if before.state == "finished":
                    print(f"finished after {number} kills: more --steps are needed", flush=True)
                    break
                saved = max(map(step_of, published(run_dir / "checkpoints")), default=0)
                (kind,) = draw.choices(list(KINDS), list(KINDS.values()))
                kill(cluster, kind, job, folder, draw)
                until(lambda: Status.read(run_dir).starts > before.starts, WAIT_S)  # noqa: B023
                goes_on = Status.read(run_dir).start_step >= saved
                (survived if goes_on else lost)[kind] += 1
                print(f"kill {number + 1}: {kind} at step {before.step}, goes on from {saved}", flush=True)
            until(lambda: Status.read(run_dir).state == "finished", 3600)
            seconds = time.monotonic() - began
            same = adapter(run_dir) == straight(folder, args.steps)
        finally:
            cluster.call("down")
    rows = [[kind, str(survived[kind]), str(lost[kind])] for kind in KINDS]
    targets = [
        Target("kills survived", sum(survived.values()), args.kills, at_least=True),
        Target("kills that lost a saved step", sum(lost.values()), 0),
        Target("final adapter is that of the uninterrupted run", float(same), 1, at_least=True),
    ]
    return report(f"soak_{args.seed}", args, ["killed", "survived", "lost"], rows, targets, seconds=seconds)


if __name__ == "__main__":
    sys.exit(main())
