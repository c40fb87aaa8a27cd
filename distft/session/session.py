"""A model with what trains on it, in the hands of an engine: where training and every evaluation begin."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from distft.config import schema
from distft.engine import build as engines
from distft.engine.seam import Engine
from distft.model import load as model
from distft.model.adapter import saved
from distft.model.adapter.saved import Beside
from distft.model.architecture import Architecture
from distft.model.load import Loaded
from distft.run.compatible import check_same_base
from distft.run.tensors import TensorFolder, open_weights
from distft.runtime.group import Group
from distft.task.module import TaskModule


@dataclass(frozen=True)
class Stage:
    engine: Engine
    loaded: Loaded
    module: TaskModule
    beside: Beside
    """What lies beside what trains in its file."""
    trained: list[TensorFolder]
    """What was trained before, as asked for; not loaded yet."""


def set_up(
    config: schema.Config,
    group: Group,
    architecture: Architecture,
    module_of: Callable[[Loaded], TaskModule],
    *,
    runs: Sequence[Path] = (),
    weights: Sequence[Path] = (),
    poll: Callable[[], None] = lambda: None,
) -> Stage:
    """Loads the base block by block into the config's engine. Every rank calls it.

    `runs`: the base must be the one that they began with; `weights`: their folders of what was trained. `poll` is
    called between blocks: loading may take longer than the warning before a kill.
    Raises ConfigError where the base or the weights are others, and what `poll` raises.
    """
    engine = engines.build(config, group, model.compute_dtype(config.model, group.device))

    def shard(block: nn.Module) -> None:
        poll()
        engine.shard(block)

    loaded = model.load(
        config.model,
        config.adapter,
        seed=config.seed,
        device=group.device,
        shard=shard,
        architecture=architecture,
    )
    for run in runs:
        check_same_base(run, loaded.identity)
    module = module_of(loaded)
    module.regularise(config.regularisation)
    beside, model_file = saved.beside(loaded.model), saved.weights_file(loaded.model)
    trained = [open_weights(folder, model_file, saved.trainable(loaded.model), beside.names) for folder in weights]
    engine.start(module)
    return Stage(engine, loaded, module, beside, trained)
