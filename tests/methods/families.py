"""The task families of the matrix: a tiny model of each, made-up documents, and what methods aim at in it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import engine_cases
import numpy as np

from distft.data.corpus import Corpus
from distft.data.document import IGNORED, Layout

LLAMA = {**engine_cases.SHAPE, "hidden_size": 32, "intermediate_size": 64, "initializer_range": 0.1}
BERT = {
    **{key: LLAMA[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")},
    "model_type": "bert",
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    # Drawn apart for every grouping of rows.
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
T5 = {
    "model_type": "t5",
    "vocab_size": LLAMA["vocab_size"],
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "dropout_rate": 0.0,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "tie_word_embeddings": True,
}
LABELS = ["art", "news", "sport"]


@dataclass(frozen=True)
class Family:
    shape: dict[str, Any]
    facts: dict[str, Any]
    targets: list[str]
    """Some of the blocks' linear layers."""
    sublayers: list[str]
    """What a bottleneck adapter stands around."""
    norms: list[str] | None = None
    """What `ln_tuning` trains; null: PEFT knows it."""


FAMILIES = {
    "causal_lm": Family(LLAMA, {}, ["q_proj", "down_proj"], ["self_attn", "mlp"]),
    "sequence_classification": Family(
        BERT,
        {"kind": "single_label", "labels": LABELS, "counts": [20, 20, 20]},
        ["query", "intermediate.dense"],
        ["attention.output.dense", "output.dense"],
        ["LayerNorm"],
    ),
    "seq2seq": Family(T5, {"pad": 0, "end": 1}, ["q", "wo"], ["SelfAttention", "DenseReluDense"]),
}


def corpus(family: str, folder: Path) -> Corpus:
    """The engine tests' documents with labels of the family: a class each, or a second half that the first one asks."""
    plain = engine_cases.corpus()
    count = plain.num_documents
    if family == "causal_lm":
        return plain
    if family == "sequence_classification":
        classes = (np.arange(count) * 7 % len(LABELS)).astype(np.int32)
        layout = Layout("document", "int32", width=1)
        return replace(plain, labels=classes, target_counts=np.ones(count, np.int64), layout=layout)
    sources = plain.lengths - plain.lengths // 2
    within = np.arange(len(plain.ids)) - np.repeat(plain.starts, plain.lengths)
    labels = np.where(within < np.repeat(sources, plain.lengths), IGNORED, plain.ids).astype(np.int32)
    np.save(folder / "segments.npy", np.stack([sources, plain.lengths // 2], 1))
    layout = Layout("token", "int32", segments=2)
    return replace(plain, labels=labels, target_counts=plain.lengths // 2, layout=layout, folder=folder)
