"""A composed config as plain YAML: what a run folder keeps and a submitted job reads."""

from pathlib import Path

import yaml

from distft.config.checks.check import check
from distft.config.reading.validate import validate
from distft.config.schema import Config
from distft.errors import ConfigError


def to_yaml(config: Config) -> str:
    """The resolved config as plain YAML: what `config.yaml` in a run folder holds and `load_run` reads."""
    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def load_resolved(file: Path, *, world_size: int | None = None, here: bool = True) -> Config:
    """What `to_yaml` wrote, checked again: for another number of ranks, or on another machine, it may not fit.

    Raises ConfigError with every problem.
    """
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"config: must be a file that launch wrote, cannot read {file}: {error}") from error
    valid, problems = validate(raw, Config.model_fields)
    problems += check(valid, world_size=world_size, here=here)
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    return Config.model_validate(valid)
