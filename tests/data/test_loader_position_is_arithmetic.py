"""Steps, shares and batches: the same rows whatever the ranks, each once an epoch, documents kept apart."""

import itertools
import math

import numpy as np
import pytest
import torch

from distft.config import schema
from distft.data.loader import Loader, collate, evaluation_batches, permutation
from distft.data.pack import plan
from tests.data.corpora import corpus_of

CORPUS = corpus_of(np.random.default_rng(1).integers(2, 40, 300))
ROWS = plan(CORPUS.lengths, 64, packing=True)
PAD = 0


def loader(rank=0, world=1, micro=1, batch=8, seed=3, steps=None, epochs=None, packing=True) -> Loader:
    data = schema.Data(train="x", max_length=64, global_batch=batch, micro_batch=micro, packing=packing)
    rows = plan(CORPUS.lengths, 64, packing)
    if steps is None and epochs is None:
        epochs = 1
    ranks = {"global_rank": rank, "world_size": world, "pad_id": PAD}
    return Loader(CORPUS, rows, data=data, seed=seed, steps=steps, epochs=epochs, **ranks)


def documents_of(batch) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The documents of a batch, by its own bounds; padding left out."""
    ids, targets = batch.input_ids.flatten().tolist(), batch.targets.flatten().tolist()
    ends = batch.document_ends.tolist()
    pieces = [(tuple(ids[a:b]), tuple(targets[a:b])) for a, b in itertools.pairwise(ends)]
    return [piece for piece in pieces if any(piece[0])]


@pytest.mark.parametrize("epochs", [1, 2, 2.5])
def test_every_row_stands_once_in_an_epoch(epochs):
    one = loader(epochs=epochs, batch=7)
    stream = np.concatenate([one.rows(step) for step in range(one.num_steps)])
    assert len(stream) == round(epochs * len(ROWS))
    for start in range(0, len(stream), len(ROWS)):
        epoch = stream[start : start + len(ROWS)]
        assert len(set(epoch.tolist())) == len(epoch)
    assert sorted(stream[: len(ROWS)].tolist()) == list(range(len(ROWS)))
    assert one.epoch(0) == 0 and one.epoch(one.num_steps) == pytest.approx(epochs, abs=0.51 / len(ROWS))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [permutation(seed, epoch, len(ROWS)).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(map(tuple, orders))) == 4


def test_an_order_is_the_same_on_every_release_of_numpy():
    # Philox 4x64-10 with key (5, 2), counter from 1, as Random123 defines it: argsort of its first ten outputs.
    bits = [philox(counter, (5, 2)) for counter in (1, 2, 3)]
    expected = sorted(range(10), key=[word for block in bits for word in block][:10].__getitem__)
    assert permutation(5, 2, 10).tolist() == expected


def philox(counter: int, key: tuple[int, int]) -> list[int]:
    """One block of Philox 4x64-10 (Salmon et al. 2011)."""
    mask = (1 << 64) - 1
    c, (k0, k1) = [counter, 0, 0, 0], key
    for _ in range(10):
        p0, p1 = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(p1 >> 64) ^ c[1] ^ k0, p1 & mask, (p0 >> 64) ^ c[3] ^ k1, p0 & mask]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
    return c


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize(("world", "micro"), [(1, 1), (2, 1), (2, 2), (3, 2), (8, 1), (5, 3)])
def test_a_steps_documents_do_not_depend_on_ranks_or_micro_batch(world, micro, packing):
    reference = loader(packing=packing, epochs=1.3)
    last = reference.num_steps - 1
    for step in (0, 3, last):
        expected = sorted(d for batch in reference.micro_batches(step) for d in documents_of(batch))
        ranks = [loader(rank, world, micro, packing=packing, epochs=1.3) for rank in range(world)]
        batches = [list(rank.micro_batches(step)) for rank in ranks]
        assert {len(share) for share in batches} == {math.ceil(8 / world / micro)}
        flat = [batch for share in batches for batch in share]
        assert sorted(d for batch in flat for d in documents_of(batch)) == expected
        assert all(len(batch.input_ids) <= micro for batch in flat)
        for rank in ranks:
            assert rank.tokens(step) == sum(batch.num_tokens for batch in flat) == sum(len(d[0]) for d in expected)
            assert rank.target_tokens(step) == sum(batch.num_targets for batch in flat)


def test_dropout_seeds_follow_the_rows_and_not_the_ranks():
    def seeds(world) -> dict:
        batches = [b for rank in range(world) for b in loader(rank, world).micro_batches(2)]
        return {tuple(b.input_ids.flatten().tolist()): b.seed for b in batches}

    assert seeds(1) == seeds(2) == seeds(4)
    assert len(set(seeds(1).values())) == 8
    assert all(0 <= seed < 1 << 63 for seed in seeds(1).values())
    assert {b.seed for b in loader().micro_batches(2)}.isdisjoint(b.seed for b in loader().micro_batches(3))


def test_a_rank_without_rows_gets_batches_that_weigh_nothing():
    last = loader(rank=3, world=4, batch=len(ROWS) - 1, epochs=1)
    batches = list(last.micro_batches(1))
    assert len(batches) == last.accumulation
    for batch in batches:
        assert batch.input_ids.tolist() == [[PAD]] and batch.targets.tolist() == [[-100]]
        assert batch.document_ends.tolist() == [0, 1] and batch.num_tokens == batch.num_targets == 0


@pytest.mark.parametrize("packing", [True, False])
def test_a_batch_is_its_documents_side_by_side(packing):
    rows = plan(CORPUS.lengths, 64, packing)
    chosen = np.array([4, 0, 9])
    batch = collate(CORPUS, rows, chosen, PAD, seed=1)
    width = max(CORPUS.lengths[rows[row]].sum() for row in chosen)
    ids, targets, positions, ends = [], [], [], [0]
    for row in chosen:  # token by token
        used = 0
        for document in rows[row]:
            start, length = CORPUS.starts[document], CORPUS.lengths[document]
            for t in range(length):
                ids.append(int(CORPUS.ids[start + t]))
                following = t + 1 < length and CORPUS.labels[start + t + 1]
                targets.append(int(CORPUS.ids[start + t + 1]) if following else -100)
                positions.append(t)
            used += length
            ends.append(ends[-1] + int(length))
        padding = int(width - used)
        ids += [PAD] * padding
        targets += [-100] * padding
        positions += range(padding)
        ends += [ends[-1] + padding] * (padding > 0)
    assert batch.input_ids.flatten().tolist() == ids and batch.input_ids.shape == (3, width)
    assert batch.targets.flatten().tolist() == targets
    assert batch.position_ids.flatten().tolist() == positions
    assert batch.document_ends.tolist() == ends
    assert batch.max_document == max(np.diff(ends))
    assert (batch.input_ids.dtype, batch.document_ends.dtype) == (torch.int64, torch.int32)
    assert batch.num_targets == sum(target != -100 for target in targets)


def test_no_target_crosses_a_documents_end():
    for batch in loader(micro=4).micro_batches(0):
        ends = batch.document_ends.tolist()
        assert all(batch.targets.flatten()[end - 1] == -100 for end in ends[1:])


@pytest.mark.parametrize(("world", "micro"), [(1, 1), (2, 4), (3, 5), (64, 2)])
def test_evaluation_sees_every_row_once_in_equally_many_batches(world, micro):
    ranks = [
        evaluation_batches(CORPUS, ROWS, micro_batch=micro, global_rank=rank, world_size=world, pad_id=PAD)
        for rank in range(world)
    ]
    assert len({len(share) for share in ranks}) == 1
    seen = sorted(d for share in ranks for batch in share for d in documents_of(batch))
    expected = [CORPUS.document(i) for i in range(CORPUS.num_documents)]
    assert seen == sorted((tuple(ids.tolist()), tuple(targets.tolist())) for ids, targets in expected)
    assert sum(batch.num_targets for share in ranks for batch in share) == CORPUS.num_targets


def test_a_million_documents_load_in_constant_time():
    lengths = np.random.default_rng(0).integers(2, 60, 1_000_000)
    corpus = corpus_of(lengths)
    data = schema.Data(train="x", max_length=64, global_batch=64, micro_batch=8)
    rows = plan(corpus.lengths, 64, packing=True)
    big = Loader(corpus, rows, data=data, seed=0, steps=10**6, epochs=None, global_rank=0, world_size=1, pad_id=PAD)
    assert big.num_steps == 10**6
    batches = list(big.micro_batches(10**6 - 1))
    assert sum(batch.num_tokens for batch in batches) == big.tokens(10**6 - 1)
