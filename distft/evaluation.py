"""The held-out loss: every row once over all ranks, each token weighing the same."""

from distft.config import schema
from distft.data.corpus import Corpus
from distft.data.loader import Batch, evaluation_batches
from distft.data.pack import plan
from distft.engine.base import Engine
from distft.runtime.env import Ranks
from distft.runtime.group import Group
from distft.runtime.stop import StopFlag


def held_out_batches(corpus: Corpus, data: schema.Data, ranks: Ranks, pad_id: int) -> list[Batch]:
    """This rank's share of the held-out rows, packed or padded as training rows are."""
    return evaluation_batches(
        corpus,
        plan(corpus.lengths, data.max_length, data.packing),
        micro_batch=data.micro_batch,
        global_rank=ranks.global_rank,
        world_size=ranks.world_size,
        pad_id=pad_id,
    )


def held_out_loss(engine: Engine, batches: list[Batch], group: Group, stop: StopFlag) -> float | None:
    """Mean loss a target token over all ranks' `batches`; None where a rank was asked to stop meanwhile.

    Ranks hold equally many batches, and all call it.
    """
    loss = 0.0
    for batch in batches:
        loss += engine.evaluate(batch).item()
        if group.any(stop.is_set):
            return None
    total, targets = group.table(loss, sum(batch.num_targets for batch in batches)).sum(0).tolist()
    return total / max(1.0, targets)
