"""Words keep their tags through sub-tokens and windows; losses are transformers', entity scores seqeval's."""

import itertools

import numpy as np
import pytest
import small
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForTokenClassification

from distft.config import schema
from distft.data.document import IGNORED
from distft.data.loader import collate
from distft.data.pack import plan
from distft.errors import ConfigError
from distft.model.load import load
from distft.task import build as tasks
from distft.task.token_classification import entity_scores

SECTION = schema.TokenClassification(name="token_classification", stride=3)
ROWS = [
    {"tokens": ["suns", "rain", "ann"], "tags": ["B-X", "I-X", "O"]},
    {"tokens": ["tea"], "tags": ["O"]},
    {"tokens": small.WORDS[:15], "tags": (["O", "B-X", "I-X"] * 5)},
]


def labelled(corpus, i):
    ids, targets = corpus.document(i)
    return [(int(a), int(b)) for a, b in zip(ids, targets, strict=True) if b != IGNORED]


def test_a_word_s_first_token_carries_its_tag(read, words):
    prepared = read(SECTION, ROWS)
    assert prepared.facts["tags"] == ["B-X", "I-X", "O"] and prepared.facts["scheme"] == "bio"
    sun, s = words.convert_tokens_to_ids(["sun", "##s"])
    ids, targets = prepared.train.document(0)
    assert ids[1:3].tolist() == [sun, s] and targets[:4].tolist() == [IGNORED, 0, IGNORED, 1]
    assert prepared.train.target_counts.tolist() == [3, 1, 15]


@pytest.mark.parametrize("max_length", [8, 10, 17])
def test_windows_label_each_word_once_and_repeat_context(read, words, max_length):
    train = read(SECTION, ROWS, max_length=max_length).train
    whole = words(" ".join(ROWS[2]["tokens"]))["input_ids"][1:-1]
    windows = [i for i in range(train.num_documents) if train.rows[i] == 2]
    assert [pair for i in windows for pair in labelled(train, i)] == list(zip(whole, [2, 0, 1] * 5, strict=True))
    assert train.lengths.max() <= max_length
    for before, after in itertools.pairwise(windows):
        ids = train.document(after)[0]
        assert ids[0] == 2 and ids[-1] == 3  # framed as a sentence is
        assert ids[1:4].tolist() == train.document(before)[0][-4:-1].tolist()  # the last three tokens again


def test_loss_and_tags_are_those_of_transformers_on_each_sentence_alone(read, words, tmp_path):
    torch.manual_seed(0)
    prepared = read(SECTION, ROWS, ROWS)
    for family in ("bert", "roberta", "distilbert", "llama"):
        shape = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        shape |= {"num_attention_heads": 4, "max_position_embeddings": 66, "initializer_range": 0.4, "pad_token_id": 0}
        shape |= {"dim": 32, "hidden_dim": 64, "n_heads": 4, "n_layers": 2} if family == "distilbert" else {}
        shape |= {"num_key_value_heads": 2} if family == "llama" else {}
        config = AutoConfig.for_model(family, **shape, num_labels=3)
        AutoModelForTokenClassification.from_config(config).save_pretrained(tmp_path / family)
        reference = AutoModelForTokenClassification.from_pretrained(tmp_path / family).eval()
        task = tasks.build(SECTION)
        loaded = load(
            schema.Model(source=str(tmp_path / family), dtype="float32", compute_dtype="float32"),
            schema.Lora(method="lora"),
            seed=0,
            device=torch.device("cpu"),
            shard=lambda block: None,
            architecture=task.architecture(prepared.facts),
        )
        module = task.module(loaded, prepared.facts).eval()
        corpus = prepared.eval
        batch = collate(corpus, plan(corpus.lengths, 48, True), np.arange(1), pad_id=0, seed=0)
        loss, outputs = module(batch)
        expected = 0.0
        for number, output in zip(batch.documents, outputs, strict=True):
            ids, targets = (torch.from_numpy(part) for part in corpus.document(number))
            logits = reference(input_ids=ids[None]).logits[0].detach()
            expected += F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum").item()
            assert output.tolist() == logits[targets != IGNORED].argmax(-1).tolist()
        assert loss.item() == pytest.approx(expected, rel=1e-5), family


def test_windows_are_put_together_before_entities_are_counted(read):
    held_out = read(SECTION, ROWS, ROWS, max_length=8).eval
    task = tasks.build(SECTION)
    facts = {"scheme": "bio", "tags": ["B-X", "I-X", "O"]}
    right = {i: np.array([tag for _, tag in labelled(held_out, i)]) for i in range(held_out.num_documents)}
    perfect = task.scores(right, held_out, facts).numbers
    assert perfect == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "accuracy": 1.0}
    first = int(np.flatnonzero(held_out.rows == 3)[0])  # rows are counted over all sources, three are trained on
    wrong = {**right, first: np.array([0, 2, 2])}  # sun: B-X, rain: O where I-X is right: one entity of six is lost
    numbers = task.scores(wrong, held_out, facts).numbers
    assert numbers["precision"] == numbers["recall"] == pytest.approx(5 / 6)
    assert numbers["accuracy"] == pytest.approx(18 / 19)


def test_entities_are_counted_whole_and_by_type():
    truth = [["B-A", "I-A", "O", "B-B"], ["B-A", "O"]]
    found = [["B-A", "I-A", "O", "B-A"], ["B-A", "B-B"]]
    scores = entity_scores(truth, found)  # of 4 found 2 are right, of 3 that there are 2 are found
    assert scores.numbers["precision"] == pytest.approx(2 / 4)
    assert scores.numbers["recall"] == pytest.approx(2 / 3)
    assert scores.numbers["f1"] == pytest.approx(2 * 2 / (4 + 3))
    assert '"A"' in scores.files["per_type.json"] and '"B"' in scores.files["per_type.json"]


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [(["B-X", "I-X", "O"], "bio"), (["B-X", "E-X", "S-Y"], "bioes"), (["NOUN", "VERB", "DET"], "plain")],
)
def test_the_scheme_is_read_off_the_tags(read, tags, scheme):
    assert read(SECTION, [{"tokens": ["sun", "rain", "tea"], "tags": tags}]).facts["scheme"] == scheme


def test_tags_that_are_not_bio_are_refused_by_line(problems):
    (problem,) = problems(SECTION, [ROWS[0], {"tokens": ["sun"], "tags": ["LOC"]}])
    assert "line 2: 'tags' must be BIO (O, B-TYPE, I-TYPE), got 'LOC'" in problem


def test_a_tag_that_is_not_trained_on_is_named(problems):
    (problem,) = problems(SECTION, ROWS, [{"tokens": ["sun"], "tags": ["B-Y"]}])
    assert problem.startswith("data.eval: ")
    assert "line 1: 'tags' must be among those trained on (B-X, I-X, O), got 'B-Y'" in problem


def test_tags_must_be_as_many_as_words(problems):
    (problem,) = problems(SECTION, [ROWS[0], {"tokens": ["sun"], "tags": ["O", "O"]}])
    assert "line 2: 'tags' must be as many as 'tokens', got 2 for 1" in problem


def test_a_stride_that_fills_the_window_is_refused(read):
    with pytest.raises(ConfigError, match=r"task\.stride: must leave room in a window of 3 tokens, got 3"):
        read(SECTION, ROWS, max_length=5)


def test_conll_files_are_sentences(tmp_path, words):
    file = tmp_path / "x.conll"
    file.write_text("-DOCSTART- -X- O\n\nsun NN B-X\nrain NN I-X\n\n# a comment\ntea NN O\n")
    from distft.data.prepare import prepare

    data = schema.Data(train=str(file), cache_dir=str(tmp_path / "cache"))
    prepared = prepare(data, tasks.build(SECTION).reader(words, data, None))
    assert [labelled(prepared.train, i)[0][1] for i in range(2)] == [0, 2] and prepared.train.num_documents == 2
    file.write_text("sun O\nrain\n")
    with pytest.raises(ConfigError, match=r"file must be well-formed CONLL, .*; line 2 must be a word and its tag"):
        prepare(data, tasks.build(SECTION).reader(words, data, None))
