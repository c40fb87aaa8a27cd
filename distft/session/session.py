"""A model in an engine's hands, opened once: where training and every evaluation begin."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import nn

from distft.config import schema
from distft.data.corpus import Corpus
from distft.data.loader import Batch, evaluation_batches
from distft.data.pack import plan
from distft.engine import build as engines
from distft.engine.seam import Engine
from distft.model import load as model
from distft.model.adapter import saved
from distft.model.adapter.saved import Beside
from distft.model.architecture import Architecture
from distft.model.load import Loaded
from distft.run.compatible import check_same_base
from distft.run.tensors import TensorFolder, open_weights
from distft.runtime import log
from distft.runtime.env import Ranks
from distft.runtime.group import Group
from distft.runtime.stop import StopFlag
from distft.task.module import TaskModule


class Blueprint(Protocol):
    """Which model to make of the base, and the module around it."""

    @property
    def architecture(self) -> Architecture: ...

    def module(self, loaded: Loaded) -> TaskModule: ...


@dataclass(frozen=True)
class Session:
    """One rank's part in a model that a group of ranks holds. What takes a session is called by all of them."""

    config: schema.Config
    group: Group
    stop: StopFlag
    """A request to stop, on this rank; whoever follows it asks the group."""
    engine: Engine
    loaded: Loaded
    module: TaskModule
    beside: Beside
    """Tensors that do not train but lie in the weights' file."""
    trained: list[TensorFolder]
    """What was trained before, as asked for; not loaded yet."""

    @classmethod
    @contextmanager
    def open(
        cls,
        config: schema.Config,
        ranks: Ranks,
        blueprint: Blueprint,
        *,
        logs: Path | None = None,
        joined: Callable[[Group], None] = lambda group: None,
        stop: StopFlag | None = None,
        runs: Sequence[Path] = (),
        weights: Sequence[Path] = (),
    ) -> Iterator["Session"]:
        """All ranks join, load the model as `start` does, and at the end of the block wait for each other and part.

        `logs`: the run folder that each rank's log file goes to; `joined` is called before the model is loaded.
        An error goes straight through: the others may sit in a collective, and to part in order would wait for them.
        """
        group = Group(ranks)
        if logs is not None:
            log.to_folder(logs, ranks.global_rank)
        joined(group)
        yield cls.start(config, group, blueprint, stop=stop, runs=runs, weights=weights)
        group.barrier()
        group.leave()

    @classmethod
    def start(
        cls,
        config: schema.Config,
        group: Group,
        blueprint: Blueprint,
        *,
        stop: StopFlag | None = None,
        runs: Sequence[Path] = (),
        weights: Sequence[Path] = (),
    ) -> "Session":
        """Loads the base block by block into the config's engine.

        `runs`: the base must be the one that they began with; `weights`: their folders of what was trained. `stop` is
        asked between blocks: loading may take longer than the warning before a kill.
        Raises ConfigError where the base or the weights are others, Stopped where a rank was asked to stop.
        """
        stop = stop or StopFlag()
        engine = engines.build(config, group, model.compute_dtype(config.model, group.device))

        def shard(block: nn.Module) -> None:
            stop.raise_if_any(group)
            engine.shard(block)

        loaded = model.load(
            config.model,
            config.adapter,
            seed=config.seed,
            device=group.device,
            shard=shard,
            architecture=blueprint.architecture,
        )
        for run in runs:
            check_same_base(run, loaded.identity)
        module = blueprint.module(loaded)
        module.regularise(config.regularisation)
        beside, stem = saved.beside(loaded.model), saved.weights_file(loaded.model)
        trained = [open_weights(folder, stem, saved.trainable(loaded.model), beside.names) for folder in weights]
        engine.start(module)
        return cls(config, group, stop, engine, loaded, module, beside, trained)

    def batches(self, corpus: Corpus, pad_id: int) -> list[Batch]:
        """This rank's share of a corpus to evaluate, packed or padded as training rows are; equally many on all."""
        ranks, data = self.group.ranks, self.config.data
        return evaluation_batches(
            corpus,
            plan(corpus.lengths, data.max_length, data.packing),
            micro_batch=data.micro_batch,
            global_rank=ranks.global_rank,
            world_size=ranks.world_size,
            pad_id=pad_id,
        )
