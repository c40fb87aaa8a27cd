"""python -m launch: checks everything here, then submits."""

import os
import shutil
import socket
import time
from pathlib import Path

from distft.cli import run_command
from distft.config.compose import load, to_yaml
from distft.config.schema import Config, Slurm
from distft.errors import ConfigError
from distft.run_folder import RunFolder


def main(argv: list[str]) -> None:
    config = load(argv, program="launch", here=False)
    config = load(argv, program="launch", world_size=config.cluster.world_size, here=False)
    folder = RunFolder(config)
    for warning in folder.check():
        print(f"warning: {warning}")
    if isinstance(config.cluster, Slurm) and shutil.which("sbatch") is None:
        raise ConfigError("cluster: slurm needs sbatch on this machine; submit from a login node, or use cluster=local")
    submit(config, folder.path)


def submit(config: Config, run_dir: Path) -> None:
    """Submits one job and says where to look."""
    from launch.cluster import executor
    from launch.job import Job

    os.umask(0o077)
    folder = Path(config.run_root).expanduser().absolute() / ".submitted" / config.name
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    resolved = folder / f"config-{time.strftime('%Y%m%d-%H%M%S')}.yaml"
    resolved.write_text(to_yaml(config))
    job = executor(config.cluster, config.name, folder).submit(Job(resolved, _free_port()))
    print(f"submitted  job {job.job_id}, {config.cluster.world_size} ranks on {config.cluster.name}")
    print(f"log        {job.paths.stdout}")
    print(f"run        {run_dir}")
    print(f"watch      tail -f {job.paths.stdout}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    run_command(main)
