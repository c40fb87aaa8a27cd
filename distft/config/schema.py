"""The typed config: what every key means, and what its value may be. Imports neither torch nor Hydra."""

# ruff: noqa: F403, F405 - all others read the sections as `schema.NAME`, and a new one is entered in its own file
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from distft.config.sections.adapter import *
from distft.config.sections.cluster import *
from distft.config.sections.data import *
from distft.config.sections.engine import *
from distft.config.sections.model import *
from distft.config.sections.optim import *
from distft.config.sections.run import *
from distft.config.sections.section import Section
from distft.config.sections.task import *
from distft.config.sections.tracking import *

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._=,+-]{0,127}$")]


class Config(Section):
    """A whole run. `distft.config.reading.compose.load` makes one from the command line."""

    name: Name
    """The run folder is `<run_root>/<name>`."""
    run_root: str = "runs"
    seed: NonNegativeInt = 0
    steps: PositiveInt | None = None
    """Optimizer steps; or `epochs`: exactly one is set."""
    epochs: PositiveFloat | None = None
    """Passes over the data."""
    resume: str = "auto"
    """`auto`: the newest valid checkpoint, else fresh; `never`: refuse a used run folder; or a checkpoint's path."""
    task: Annotated[AnyTask, Field(discriminator="name")] = CausalLm(name="causal_lm")
    model: Model
    adapter: Annotated[AnyAdapter, Field(discriminator="method")]
    engine: Annotated[AnyEngine, Field(discriminator="name")]
    data: Data
    optim: Annotated[AnyOptim, Field(discriminator="name")]
    regularisation: Regularisation = Regularisation()
    checkpoint: Checkpoint
    evaluation: Evaluation
    tracking: Annotated[AnyTracking, Field(discriminator="name")]
    cluster: Annotated[AnyCluster, Field(discriminator="name")]
    runtime: Runtime = Runtime()
