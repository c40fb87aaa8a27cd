"""What runs on the node. It holds a path and a port, never a config or a secret: a requeue replays the same pickle."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from distft.config.schema import Config, Slurm
from distft.runtime.env import Ranks, read_ranks
from distft.runtime.stop import StopFlag


@dataclass(frozen=True)
class Job:
    """One rank of the run whose resolved config stands in `config_file`."""

    config_file: Path
    local_port: int
    """Where the ranks of a local job meet; Slurm's ranks derive theirs from the job."""

    def __call__(self) -> str:
        config = Config.model_validate(yaml.safe_load(self.config_file.read_text()))
        stop = StopFlag()
        stop.install()
        from distft.train import train

        return str(train(config, self._ranks(config), stop))

    def _ranks(self, config: Config) -> Ranks:
        if isinstance(config.cluster, Slurm):
            return read_ranks()
        from launch.cluster import ranks_of_local_task

        rank, world_size = ranks_of_local_task()
        return Ranks(rank, world_size, rank, world_size, "127.0.0.1", self.local_port, "submitit")
