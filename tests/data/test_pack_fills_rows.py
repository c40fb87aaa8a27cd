"""Packing: whole documents, each once, no row over its limit, hardly a token of padding, in little time."""

import time

import numpy as np
import pytest

from distft.config import schema
from distft.data.pack import plan
from tests.data.reading import prepare

LENGTHS = np.random.default_rng(0).lognormal(5.5, 1.0, 20_000).clip(2, 2048).astype(np.int64)


def test_every_document_stands_in_one_row_and_rows_keep_their_limit():
    rows = plan(LENGTHS, 2048, packing=True)
    assert sorted(rows.documents.tolist()) == list(range(len(LENGTHS)))
    totals = [LENGTHS[rows[r]].sum() for r in range(len(rows))]
    assert max(totals) <= 2048 and min(totals) > 0
    assert rows.sums(LENGTHS).tolist() == totals


def test_the_best_fit_is_taken():
    # By hand, rows of 10: 7, 6 and 5 open rows; 4 closes 6; a 3 closes 7; the other 3 and the 2 close 5.
    rows = plan(np.array([3, 7, 2, 6, 4, 3, 5]), 10, packing=True)
    assert [rows[r].tolist() for r in range(len(rows))] == [[0, 1], [3, 4], [2, 5, 6]]


def test_without_packing_a_document_is_a_row():
    rows = plan(np.array([3, 7, 2]), 10, packing=False)
    assert [rows[r].tolist() for r in range(3)] == [[0], [1], [2]]


def test_a_plan_is_a_function_of_the_lengths():
    first, again = plan(LENGTHS, 2048, packing=True), plan(LENGTHS.copy(), 2048, packing=True)
    assert np.array_equal(first.offsets, again.offsets) and np.array_equal(first.documents, again.documents)


@pytest.fixture(scope="module")
def dialogues(smollm2, tmp_path_factory):
    """The embedded data at 2048 tokens a row."""
    cache = str(tmp_path_factory.mktemp("cache"))
    source = "package://chatterbot_corpus/data/english"
    return prepare(schema.Data(train=source, eval_fraction=0.1, deduplicate=True, cache_dir=cache), smollm2)


def test_the_embedded_datas_lengths_fill_98_percent(dialogues):
    lengths = dialogues.train.lengths
    assert len(plan(lengths, 2048, packing=True)) == -(-lengths.sum() // 2048), "no plan has fewer rows"
    # 24 rows of which the last is half empty say little: the same distribution, more of it.
    drawn = np.random.default_rng(0).choice(lengths, 20_000)
    assert drawn.sum() / len(plan(drawn, 2048, packing=True)) / 2048 >= 0.98


def test_the_embedded_data_counts_what_a_plain_reading_counts(dialogues):
    # Counted with yaml.safe_load and a set of tuples: 2026 conversations, 899 different, 749 first utterances.
    sides = [dialogues.train, dialogues.eval]
    assert sum(side.counts.rows for side in sides) == 2026
    assert sum(side.num_documents for side in sides) == 899
    assert 50 <= dialogues.eval.num_documents <= 150


def test_a_million_documents_are_planned_in_seconds():
    many = np.resize(LENGTHS, 1_000_000)
    start = time.perf_counter()
    rows = plan(many, 2048, packing=True)
    assert time.perf_counter() - start < 15  # 0.8 s on an idle core; n^2 would be days
    assert many.sum() / len(rows) / 2048 > 0.99
