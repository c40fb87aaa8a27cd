"""data.replay: an exact share of each epoch is older data, always the same rows, and none that was held out."""

from collections import Counter

import numpy as np
import pytest

from distft.config import schema
from distft.data.document import question_hash
from distft.errors import ConfigError
from tests.data.chats import chat
from tests.data.reading import prepare

NEW = [chat(f"New {n}?", f"Answer {n}") for n in range(60)]
OLD = [chat(f"Old {n}?", f"Reply {n}") for n in range(100)]


@pytest.fixture
def mixed(section, smollm2, jsonl):
    def run(share: float, old=OLD, **options):
        files = jsonl(*NEW, name="new.jsonl"), jsonl(*old, name="old.jsonl")
        return prepare(section(files[0], replay=files[1], replay_share=share, **options), smollm2)

    return run


@pytest.mark.parametrize(("share", "older"), [(0.1, 7), (0.5, 60), (0.75, 180)])
def test_the_share_is_exact_and_rows_stand_equally_often(mixed, share, older):
    train = mixed(share).train
    rows = Counter(train.rows.tolist())
    assert sum(count for row, count in rows.items() if row >= 60) == older == train.counts.replayed
    assert all(rows[row] == 1 for row in range(60))
    often = {rows[row] for row in range(60, 160)}
    assert often == {older // 100, older // 100 + 1} or often == {older // 100}


def test_the_rows_are_the_same_whatever_stands_beside_them_and_are_no_prefix(mixed, section, smollm2, jsonl):
    first = mixed(0.2).train
    again = mixed(0.2, max_length=100).train
    assert first.rows.tolist() == again.rows.tolist()
    older = [row - 60 for row in first.rows.tolist() if row >= 60]
    assert len(older) == 15 and older != list(range(15))
    more = mixed(0.4).train
    assert set(older) < {row - 60 for row in more.rows.tolist()}, "a larger share adds rows, it changes none"


def test_what_the_older_run_held_out_is_neither_trained_on_nor_measured(mixed):
    prepared = mixed(0.5, eval_fraction=0.3)
    limit = 0.3 * 2.0**64
    unseen = {n for n in range(100) if question_hash(f"old {n}?") < limit}
    assert 10 < len(unseen) < 60
    trained = {row - 60 for row in prepared.train.rows.tolist() if row >= 60}
    assert trained and not trained & unseen
    assert all(row < 60 for row in prepared.eval.rows.tolist())
    assert prepared.eval.num_documents == sum(question_hash(f"new {n}?") < limit for n in range(60))


def test_weights_of_older_sources_are_kept_among_each_other(section, smollm2, jsonl):
    new, rare, often = jsonl(*NEW, name="n.jsonl"), jsonl(*OLD[:50], name="a.jsonl"), jsonl(*OLD[50:], name="b.jsonl")
    replay = [schema.Source(path=rare, weight=1), schema.Source(path=often, weight=3)]
    rows = prepare(section(new, replay=replay, replay_share=0.9), smollm2).train.rows
    counts = np.bincount(rows, minlength=160)
    assert counts[60:].sum() == 540
    assert counts[110:].sum() / counts[60:110].sum() == pytest.approx(3, rel=0.15)


def test_share_and_data_are_in_the_caches_key(mixed):
    folders = {mixed(0.2).folder, mixed(0.3).folder, mixed(0.2, OLD[1:]).folder}
    assert len(folders) == 3


def test_nothing_left_to_replay_is_refused(mixed):
    with pytest.raises(ConfigError, match=r"data\.replay: at least one row must be left"):
        mixed(0.2, NEW, deduplicate=True)
    with pytest.raises(ConfigError, match=r"data\.replay: columns must be those of"):
        mixed(0.2, [{"question": "Hi"}])
