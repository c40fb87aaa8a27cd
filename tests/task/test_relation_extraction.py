"""Markers frame the spans, the head reads their states; bad spans are told by line."""

import numpy as np
import pytest
import small
import torch
import torch.nn.functional as F
from transformers import AutoModel

from distft.config import schema
from distft.data.loader import collate
from distft.data.pack import plan
from distft.model.load import load
from distft.task import build as tasks

SECTION = schema.RelationExtraction(name="relation_extraction")
ROW = {"text": "sun ann lives in rome", "subject": [4, 7], "object": [17, 21], "label": "home"}
OTHER = {"text": "rome is what bob never", "subject": [13, 16], "object": [0, 4], "label": "none"}
ROWS = [ROW, OTHER]


def test_markers_stand_around_the_spans_and_their_places_are_kept(read, words):
    train = read(SECTION, ROWS).train
    for i, text in enumerate(["sun @ ann @ lives in # rome #", "# rome # is what @ bob @ never"]):
        ids, labels = train.document(i)
        assert ids.tolist() == words(text)["input_ids"]
        marks = text.split()
        subject = [at + 1 for at, word in enumerate(marks) if word == "@"]
        object = [at + 1 for at, word in enumerate(marks) if word == "#"]
        assert labels.tolist() == [i, *subject, *object]


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_head_reads_the_states_at_both_markers(read, words_folder, family):
    prepared = read(SECTION, ROWS)
    task = tasks.build(SECTION)
    shape = {**small.MODELS[family], "initializer_range": 0.4}
    loaded = load(
        schema.Model(source=str(words_folder), random_init=shape, dtype="float32", compute_dtype="float32"),
        schema.Lora(method="lora"),
        seed=0,
        device=torch.device("cpu"),
        shard=lambda block: None,
        architecture=task.architecture(prepared.facts),
    )
    module = task.module(loaded, prepared.facts).eval()
    batch = collate(prepared.train, plan(prepared.train.lengths, 48, True), np.arange(1), pad_id=0, seed=0)
    loss, outputs = module(batch)
    base = module.base
    alone = AutoModel.from_config(base.config, attn_implementation="sdpa").eval()
    weights = {n.replace(".base_layer", ""): p for n, p in base.base_model.state_dict().items() if "lora" not in n}
    alone.load_state_dict(weights, strict=False)
    head = (base.score if family == "llama" else base.classifier).modules_to_save["default"]
    assert head.weight.shape == (2, 64)
    expected, columns = 0.0, (2, 4) if family == "llama" else (1, 3)
    for number, output in zip(batch.documents, outputs, strict=True):
        ids, labels = prepared.train.document(number)
        states = alone(input_ids=torch.from_numpy(ids)[None]).last_hidden_state[0][labels[list(columns)]]
        logits = head(states.flatten()).detach()
        np.testing.assert_allclose(output, logits.numpy(), rtol=1e-4, atol=1e-5)
        expected += F.cross_entropy(logits, torch.tensor(labels[0])).item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"subject": [4, 40]}, "'subject' must be [start, end] of a span in the 21 characters of 'text', got [4, 40]"),
        ({"subject": [7, 4]}, "'subject' must be [start, end]"),
        ({"object": None}, "'object' must be [start, end]"),
        ({"object": [5, 12]}, "'subject' and 'object' must not overlap, got [[4, 7], [5, 12]]"),
        ({"text": 7}, "'text' must be a string, got 7"),
    ],
)
def test_bad_spans_are_told_by_line(problems, change, told):
    (problem,) = problems(SECTION, [*ROWS, {**ROW, **change}])
    assert "line 3: " in problem and told in problem


def test_a_relation_that_is_not_trained_on_is_named(problems):
    (problem,) = problems(SECTION, ROWS, [{**ROW, "label": "friend"}])
    assert "line 1: 'label' must be a relation that is trained on (home, none), got 'friend'" in problem


def test_one_relation_alone_is_refused(problems):
    (problem,) = problems(SECTION, [ROW, ROW])
    assert problem == "data.train: column 'label' must have at least two relations, got home"


def test_a_span_beyond_the_row_s_end_drops_the_row_with_its_reason(read):
    train = read(SECTION, [*ROWS, {**ROW, "text": ROW["text"] + " tea" * 40}], max_length=12).train
    assert train.num_documents == 3 and train.counts.truncated == 1
    train = read(
        SECTION, [OTHER, ROW, {**OTHER, "text": "rome " + "tea " * 20 + "bob", "subject": [85, 88]}], max_length=12
    )
    assert train.train.counts.dropped == {"a span ends beyond the first 12 tokens": 1}
