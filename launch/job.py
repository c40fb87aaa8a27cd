"""What runs on the node. It holds a path, never a config or a secret: a requeue replays the same pickle."""

from dataclasses import dataclass
from pathlib import Path

from distft.runtime.command import exit_code, leave
from distft.runtime.env import Ranks, read_ranks


@dataclass(frozen=True)
class Job:
    """One rank of the run whose resolved config stands in `config_file`."""

    config_file: Path

    def __call__(self) -> str:
        folders: list[Path] = []
        code = exit_code(lambda: folders.append(self._train()))
        if code:  # not an exception: submitit would print its traceback, and end with 1 whatever it was
            leave(code)
        return str(folders[0])

    def _train(self) -> Path:
        from distft.config.reading.resolved import load_resolved
        from distft.train.command import start

        return start(lambda ranks: load_resolved(self.config_file, world_size=ranks.world_size), self._ranks())

    def _ranks(self) -> Ranks:
        ranks = read_ranks()
        if ranks.launcher == "slurm":
            return ranks
        from launch.cluster import local_task

        job_id, rank, world_size = local_task()
        meeting = f"local.{job_id}.{self.config_file}"
        return Ranks(rank, world_size, rank, world_size, "127.0.0.1", meeting=meeting, launcher="submitit")
