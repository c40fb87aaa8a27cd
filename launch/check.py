"""What can be known on the login node, before a job waits hours in the queue to say it."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from distft.config.checks.check import check_on_disk
from distft.config.keys import nearest
from distft.config.schema import Config, Slurm
from distft.errors import ConfigError
from distft.runtime import slurm
from distft.runtime.location import choose, locate

HUB_TIMEOUT_S = 15


@dataclass
class Partition:
    name: str
    is_default: bool
    nodes: int = 0
    gpus_per_node: int = 0
    limit_min: int | None = None
    """null: none."""
    default_min: int | None = None
    gres: set[str] = field(default_factory=set)


def problems_of(config: Config) -> list[str]:
    """Files, packages, data and weights that are not there. Reads the data's columns, not all of it."""
    values = {name: getattr(config, name) for name in Config.model_fields}
    return check_on_disk(values) or [*_hub(config), *_data(config)]


def with_time_limit(cluster: Slurm) -> tuple[Slurm, list[str]]:
    """`cluster` with its wall time filled in from the partition's default; and what Slurm cannot give it."""
    if shutil.which("sbatch") is None:
        return cluster, [
            "cluster: slurm needs sbatch on this machine, got none; submit from a login node, or use cluster=local"
        ]
    partitions = _partitions()
    if not partitions:
        return cluster, [] if cluster.time_min else [_no_time("sinfo tells no default")]
    wanted = cluster.partition or next((each.name for each in partitions.values() if each.is_default), None)
    partition = partitions.get(wanted or "")
    if partition is None:
        near = nearest(wanted or "", partitions)
        hint = f"did you mean {near}? " if near else ""
        got = wanted or "null, and there is no default"
        return cluster, [f"cluster.partition: must be one that sinfo knows, got {got}; {hint}{', '.join(partitions)}"]
    time_min = cluster.time_min or partition.default_min or partition.limit_min
    problems = [*_room(cluster, partition)]
    if time_min is None:
        problems.append(_no_time(f"partition {partition.name} has no default"))
    return cluster.model_copy(update={"time_min": time_min}), problems


def _room(cluster: Slurm, partition: Partition) -> Iterator[str]:
    name = partition.name
    if cluster.nodes > partition.nodes:
        yield f"cluster.nodes: must be at most the {partition.nodes} of partition {name}, got {cluster.nodes}"
    if cluster.gpus_per_node > partition.gpus_per_node:
        known = ", ".join(sorted(partition.gres)) or "none"
        yield (
            f"cluster.gpus_per_node: must be at most the {partition.gpus_per_node} GPUs of a node in partition {name}, "
            f"got {cluster.gpus_per_node}; GRES there: {known}"
        )
    if cluster.time_min and partition.limit_min and cluster.time_min > partition.limit_min:
        yield (
            f"cluster.time_min: must be at most the limit of partition {name}, {partition.limit_min} minutes, "
            f"got {cluster.time_min}; a run that reaches its limit saves and is requeued"
        )
    if cluster.gpus_per_node and cluster.ranks_per_node != cluster.gpus_per_node:
        yield (
            f"cluster.tasks_per_node: must be one a GPU, got {cluster.ranks_per_node} with "
            f"cluster.gpus_per_node={cluster.gpus_per_node}; set cluster.tasks_per_node=null"
        )


def _no_time(why: str) -> str:
    return f"cluster.time_min: must be set, got null and {why}; give minutes, such as cluster.time_min=600"


def _partitions() -> dict[str, Partition]:
    """By name; empty where sinfo gives no answer."""
    partitions: dict[str, Partition] = {}
    answer = slurm.ask("sinfo", "--noheader", "--format=%P|%D|%G|%l|%L")
    for line in (answer or "").splitlines():
        marked, count, gres, limit, default = line.split("|")
        name = marked.rstrip("*")
        known = partitions.setdefault(name, Partition(name, is_default=marked.endswith("*")))
        known.nodes += int(count)
        known.gpus_per_node = max(known.gpus_per_node, gpus_in(gres))
        known.gres |= {gres} - {"(null)"}
        known.limit_min, known.default_min = minutes(limit), minutes(default)
    return partitions


def gpus_in(gres: str) -> int:
    """GPUs in a node's GRES: `gpu:a100:4(S:0-1),shard:8` has 4."""
    parts = [part.split("(")[0].split(":") for part in gres.split(",")]
    return sum(int(part[-1]) for part in parts if part[0] == "gpu" and part[-1].isdigit())


def minutes(limit: str) -> int | None:
    """`1-02:30:00`, `4:00:00` or `30:00` in minutes; None for `infinite` and `n/a`."""
    days, _, clock = limit.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in parts) or (days and not days.isdigit()):
        return None
    hours, mins = (int(parts[0]), int(parts[1])) if len(parts) == 3 else (0, int(parts[0]))
    return int(days or 0) * 1440 + hours * 60 + mins


def _hub(config: Config) -> Iterator[str]:
    """A model on the hub must be in the cache, or the hub must answer for it."""
    source = choose(config.model.source)
    if locate(source) is not None:
        return
    from huggingface_hub import HfApi, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(source, "config.json", revision=config.model.revision), str):
        return
    try:
        HfApi().model_info(source, revision=config.model.revision, timeout=HUB_TIMEOUT_S)
    except Exception as error:  # noqa: BLE001 - the hub's client raises a dozen kinds: no such name, gated, no network
        reason = " ".join(str(error).split())[:160]
        yield (
            f"model.source: must be in the hub's cache here, or the hub must answer for it, got {source!r} ({reason}); "
            "check the name, the network and your token"
        )


def _data(config: Config) -> list[str]:
    from distft.data import source

    problems: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        for key, sources in config.data.sources.items():
            try:
                resolved, wrong = source.resolve(sources, f"data.{key}", lambda file: "")
                formats = config.task.traits.formats
                problems += [*wrong, *source.open_parts(resolved, config.data.format, formats, Path(scratch))[1]]
            except ConfigError as error:
                problems += error.problems
    return problems
