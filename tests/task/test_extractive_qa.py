"""Answers are found in the window that holds them; losses are transformers', scores those of SQuAD's formulas."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForQuestionAnswering

from distft.config import schema
from distft.data.loader import collate
from distft.data.pack import plan
from distft.errors import ConfigError
from distft.model.load import load
from distft.task import build as tasks
from distft.task.extractive_qa import best_answer, normalised, word_f1

SECTION = schema.ExtractiveQa(name="extractive_qa", stride=4)
CONTEXT = "ann lives in rome bob works at acme the blue sky is never seven tea in paris"
ROW = {"question": "what is bob", "context": CONTEXT, "answers": {"text": ["works at acme"], "answer_start": [22]}}


def texts(corpus, i, words):
    ids, (start, end) = corpus.document(i)
    return words.decode(ids), words.decode(ids[start : end + 1])


@pytest.mark.parametrize("answers", [ROW["answers"], ["works at acme"], "works at acme", [{"text": "works at acme"}]])
def test_answers_in_every_form_are_found(read, words, answers):
    train = read(SECTION, [{**ROW, "answers": answers}]).train
    assert train.num_documents == 1 and texts(train, 0, words)[1] == "works at acme"


def test_windows_share_tokens_and_point_at_the_answer_or_at_their_first_token(read, words):
    train = read(SECTION, [ROW], max_length=15).train
    windows = [texts(train, i, words) for i in range(train.num_documents)]
    assert train.num_documents == 3 and train.num_targets == 3
    assert all(whole.startswith("[CLS] what is bob [SEP]") for whole, _ in windows)
    assert [answer for _, answer in windows if answer != "[CLS]"] and all(
        answer == ("works at acme" if "works at acme" in whole else "[CLS]") for whole, answer in windows
    )


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_loss_is_that_of_transformers_on_each_window_alone(read, words, tmp_path, family):
    torch.manual_seed(0)
    shape = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "max_position_embeddings": 66, "initializer_range": 0.4}
    shape |= {"dim": 32, "hidden_dim": 64, "n_heads": 4, "n_layers": 2} if family == "distilbert" else {}
    AutoModelForQuestionAnswering.from_config(AutoConfig.for_model(family, **shape)).save_pretrained(tmp_path / family)
    reference = AutoModelForQuestionAnswering.from_pretrained(tmp_path / family).eval()
    prepared = read(SECTION, [ROW, {**ROW, "question": "what"}], max_length=15)
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
    corpus = prepared.train
    batch = collate(corpus, plan(corpus.lengths, 15, False), np.arange(corpus.num_documents), pad_id=0, seed=0)
    loss, outputs = module(batch)
    expected = 0.0
    for number, output in zip(batch.documents, outputs, strict=True):
        ids, (start, end) = corpus.document(number)
        inputs = {"input_ids": torch.from_numpy(ids)[None]}
        if family == "bert":
            first = ids.tolist().index(3) + 1
            inputs["token_type_ids"] = (torch.arange(len(ids)) >= first).long()[None]
        out = reference(**inputs, start_positions=torch.tensor([start]), end_positions=torch.tensor([end]))
        expected += out.loss.item()
        both = torch.stack([out.start_logits[0], out.end_logits[0]]).detach()
        np.testing.assert_allclose(output, both.numpy(), rtol=1e-4, atol=1e-5)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_best_span_over_windows_is_in_order_short_enough_and_in_the_context():
    reference = {"context": "ab cd ef", "windows": [[None, [0, 2], [3, 5]], [None, [3, 5], [6, 8]]]}
    high = [np.array([[9.0, 0, 1], [9, 2, 0]]), np.array([[0.0, 3, 0], [0, 0, 2]])]
    assert best_answer(high, reference, SECTION) == "cd ef"  # 3 + 2; the first token's 9 + 9 is no text
    short = SECTION.model_copy(update={"max_answer": 1})
    assert best_answer(high, reference, short) == "cd"  # 3 + 0 in the second window; 0 + 2 in the first is less
    open_ended = SECTION.model_copy(update={"no_answer": True})
    assert best_answer(high, reference, open_ended) == "cd ef"  # no answer: 18 in one window, but 0 in the other
    none = [logits + np.array([[4.0, 0, 0], [4, 0, 0]]) for logits in high]
    assert best_answer(none, reference, open_ended) == ""
    assert best_answer(none, reference, open_ended.model_copy(update={"no_answer_margin": 4.0})) == "cd ef"


def test_exact_match_and_f1_are_squad_s():
    assert normalised("The  Blue, sky!") == "blue sky"
    assert word_f1("the blue sky", "blue tea") == pytest.approx(2 * (1 / 2) * (1 / 2) / (1 / 2 + 1 / 2))
    assert word_f1("", "") == 1.0 and word_f1("", "tea") == 0.0


def test_the_best_of_several_answers_counts(read):
    rows = [{**ROW, "answers": ["acme", "works at acme"]}, {**ROW, "question": "what", "answers": ["rome"]}]
    held_out = read(SECTION, rows, rows).eval
    outputs = {}
    for i in range(2):
        logits = np.zeros((2, int(held_out.lengths[i])))
        place = held_out.document(i)[1]
        logits[0, place[0]] = logits[1, place[1]] = 5
        outputs[i] = logits
    outputs[1] = np.roll(outputs[1], -1, axis=1)  # "in" in place of "rome"
    scores = tasks.build(SECTION).scores(outputs, held_out, {})
    assert scores.numbers == {"exact_match": 0.5, "f1": 0.5}


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        (
            {"text": ["globex"], "answer_start": [3]},
            "every answer must stand in 'context', got \"globex\" at character 3",
        ),
        (["globex"], "every answer must stand in 'context', got \"globex\""),
        ([], "'answers' must hold an answer, got none; set task.no_answer=true"),
        ([7], "'answers' must be texts"),
    ],
)
def test_bad_answers_are_told_by_line(problems, answers, told):
    (problem,) = problems(SECTION, [ROW, {**ROW, "answers": answers}])
    assert "line 2: " in problem and told in problem


def test_no_answer_is_taken_where_it_may_be(read):
    section = SECTION.model_copy(update={"no_answer": True})
    train = read(section, [ROW, {**ROW, "answers": {"text": [], "answer_start": []}}]).train
    assert train.document(1)[1].tolist() == [0, 0] and train.document(0)[1].tolist() != [0, 0]


def test_a_question_without_room_for_its_context_drops_the_row(read):
    train = read(SECTION, [ROW, {**ROW, "question": "what is " * 9}], max_length=15).train
    assert train.counts.dropped == {"the question leaves no room for its context in 15 tokens": 1}


def test_a_decoder_is_refused(read, words_folder):
    import small

    prepared = read(SECTION, [ROW])
    task = tasks.build(SECTION)
    source = schema.Model(source=str(words_folder), random_init=small.LLAMA, dtype="float32")
    loaded = load(
        source,
        schema.Lora(method="lora"),
        seed=0,
        device=torch.device("cpu"),
        shard=lambda block: None,
        architecture=task.architecture(prepared.facts),
    )
    with pytest.raises(ConfigError, match=r"model\.source: task=extractive_qa knows the heads of encoders"):
        task.module(loaded, prepared.facts)
