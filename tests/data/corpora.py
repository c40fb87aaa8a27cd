"""Corpora made by hand, without a tokenizer."""

import numpy as np

from distft.data.corpus import Corpus, Counts


def corpus_of(lengths, seed: int = 0) -> Corpus:
    """Documents of these lengths with random tokens from 1 up; about half of the tokens are supervised."""
    random = np.random.default_rng(seed)
    lengths = np.asarray(lengths, np.int64)
    starts = np.cumsum(lengths) - lengths
    supervised = random.random(lengths.sum()) < 0.5
    supervised[starts] = False
    target_counts = np.add.reduceat(supervised, starts, dtype=np.int64)
    ids = random.integers(1, 1000, lengths.sum()).astype(np.int32)
    counts = Counts(rows=len(lengths), duplicates=0, truncated=0, dropped={})
    return Corpus(counts, "by hand", lengths, target_counts, starts, ids, supervised)
