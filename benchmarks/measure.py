"""Side-by-side measurement: each arm in a process of its own, their blocks interleaved A B B A, ratios taken by pair.

Absolute times say little on a shared machine; two neighbouring blocks see the same neighbours.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from distft.runtime.processor import has_bfloat16_units

RESULTS = Path(__file__).parent / "results"


def parser(description: str | None) -> argparse.ArgumentParser:
    """What every benchmark takes."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--blocks", type=int, default=3, help="rounds of A B B A")
    made.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    made.add_argument("--arm", help=argparse.SUPPRESS)
    return made


class Arm:
    """A process that runs `python -m MODULE --arm NAME ...` and does one block at each `run()`."""

    def __init__(self, module: str, name: str, *args: str, env: dict[str, str] | None = None):
        self.name = name
        self._log = tempfile.NamedTemporaryFile("w+", prefix=f"{name}-", suffix=".log")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, "--arm", name, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, **(env or {})},
        )

    def run(self) -> dict[str, Any]:
        """What the arm's block returned, with `seconds`, `cpu_seconds` and `peak_memory_bytes`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self._log.seek(0)
            raise RuntimeError(f"arm {self.name} died:\n{self._log.read()[-4000:]}")
        return json.loads(answer)

    def __enter__(self) -> "Arm":
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


class Turns:
    """The arm's end of the pipe: `wait()` for a turn, `done(result)` after it. Times what lies between."""

    def __init__(self) -> None:
        # Whatever libraries print must not get among the answers.
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._start = self._start_cpu = 0.0

    def wait(self) -> None:
        if not sys.stdin.readline():
            sys.exit(0)
        synchronize()
        self._start, self._start_cpu = time.perf_counter(), time.process_time()

    def done(self, result: dict[str, Any]) -> None:
        synchronize()
        seconds = time.perf_counter() - self._start
        cpu_seconds = time.process_time() - self._start_cpu
        answer = {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_memory_bytes": peak_memory_bytes(), **result}
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()

    def serve(self, block: Callable[[], dict[str, Any]]) -> None:
        while True:
            self.wait()
            self.done(block())


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory_bytes() -> int:
    """Of the GPU where there is one, else of the process's resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    # Not ru_maxrss: that begins at the parent's size.
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def interleave(a: Arm, b: Arm, blocks: int, warmup: int = 1) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Results of both arms over `blocks` rounds of A B B A; entries i of the two lists are neighbours in time.

    The warm-up blocks are in neither.
    """
    pairs = [(a, b)] * warmup + [(a, b), (b, a)] * blocks
    results: dict[str, list[dict[str, Any]]] = {a.name: [], b.name: []}
    for pair in track(pairs, f"{a.name} and {b.name}", console=Console(stderr=True)):
        for arm in pair:
            results[arm.name].append(arm.run())
    return results[a.name][warmup:], results[b.name][warmup:]


@dataclass(frozen=True)
class Ratio:
    """The median of paired ratios, and the quartiles and extremes around it."""

    median: float
    low: float
    high: float
    least: float
    most: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    ratios = sorted(a / b for a, b in zip(numerators, denominators, strict=True))
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return Ratio(median, low, high, ratios[0], ratios[-1], len(ratios))


@dataclass(frozen=True)
class Target:
    """A claim about a measured figure; `limit` is the least (`at_least`) or the most it may be."""

    claim: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit


class Unfair(Exception):
    """The arms did not do the same work: their figures must not be compared."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise Unfair(message)


def require_same_work(a: list[dict[str, Any]], b: list[dict[str, Any]], tolerance: float) -> None:
    """Raises Unfair unless losses agree, gradients are there on both sides and the same tokens were counted.

    Blocks report `losses` and `grad_norms`, one a step, and `tokens`.
    """
    for block, (ours, theirs) in enumerate(zip(a, b, strict=True)):
        require(ours["tokens"] == theirs["tokens"], f"block {block}: {ours['tokens']} and {theirs['tokens']} tokens")
        for key in ("losses", "grad_norms"):
            require(min(*ours[key], *theirs[key]) > 0, f"block {block}: {key} must be above zero")
        for left, right in zip(ours["losses"], theirs["losses"], strict=True):
            require(abs(left - right) <= tolerance * abs(right), f"block {block}: losses {left} and {right}")


def report(
    name: str,
    args: argparse.Namespace,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    targets: Sequence[Target],
    **more: Any,
) -> int:
    """Prints the table, writes `NAME.json` with `more` in it; returns the exit code: 1 if a target is missed."""
    console = Console()
    table = Table(*columns, title=name)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for target in targets:
        sign = ">=" if target.at_least else "<="
        verdict = "met" if target.met else "[bold]MISSED[/bold]"
        console.print(f"{target.claim}: {target.value:.3g}, target {sign} {target.limit:.3g}: {verdict}")
    result = {
        "machine": machine(),
        "settings": {key: value for key, value in vars(args).items() if key not in ("arm", "results")},
        "columns": list(columns),
        "rows": [list(row) for row in rows],
        "targets": [{**asdict(target), "met": target.met} for target in targets],
        **more,
    }
    args.results.mkdir(parents=True, exist_ok=True)
    path = args.results / f"{name}.json"
    path.write_text(json.dumps(result, indent=1, default=asdict) + "\n")
    console.print(f"written to {path}")
    return 0 if all(target.met for target in targets) else 1


def machine() -> dict[str, Any]:
    """What a reader needs to judge the figures."""
    model = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), "unknown")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bfloat16_units": has_bfloat16_units(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in ("torch", "transformers", "peft", "trl", "deepspeed")},
        "time": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
