"""Sources and targets are two segments; losses and generations are transformers', scores those of their formulas."""

import numpy as np
import pytest
import small
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from distft.config import schema
from distft.data.loader import collate
from distft.data.pack import plan
from distft.model.adapter import saved
from distft.model.load import load
from distft.task import build as tasks
from distft.task.seq2seq import text_scores

SECTION = schema.Seq2Seq(name="seq2seq", max_new_tokens=6)
ROWS = [
    {"source": "sun rain what", "target": "tea ann"},
    {"source": "bob", "target": "the blue sky never"},
    {"source": "acme works at rome is", "target": "seven"},
]


def test_a_document_is_source_and_target_with_labels_in_the_target(read, words):
    section = SECTION.model_copy(update={"prefix": "what "})
    train = read(section, ROWS).train
    ids, labels = train.document(0)
    source, target = words("what sun rain what")["input_ids"], words("tea ann")["input_ids"]
    assert ids.tolist() == [*source, *target] and labels.tolist() == [-100] * len(source) + target
    assert train.segments(0).tolist() == [len(source), len(target)]
    assert train.target_counts.tolist() == [4, 6, 3]


def test_long_sources_and_targets_are_cut_with_their_ends_kept(read):
    section = SECTION.model_copy(update={"max_target": 4})
    train = read(section, [{"source": "sun " * 30, "target": "tea " * 30}], max_length=12).train
    assert train.segments(0).tolist() == [8, 4] and train.counts.truncated == 1
    ids, labels = train.document(0)
    assert ids[7] == ids[11] == 3 and (labels != -100).sum() == 4
    dropped = read(section, [ROWS[0], {"source": "sun", "target": "tea " * 30}], too_long="drop").train
    assert dropped.counts.dropped == {"target longer than 4 tokens": 1}


@pytest.fixture(params=["t5", "bart"])
def folder(request, tmp_path):
    torch.manual_seed(0)
    bart = {"vocab_size": 40, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "init_std": 0.4}
    bart |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    bart |= {"max_position_embeddings": 66, "pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 2}
    bart |= {"forced_eos_token_id": None, "bos_token_id": 2}
    shape = {k: v for k, v in small.T5.items() if k != "model_type"} if request.param == "t5" else bart
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(request.param, **shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_loss_and_generation_are_those_of_transformers_on_each_pair_alone(read, words, folder):
    reference = AutoModelForSeq2SeqLM.from_pretrained(folder, attn_implementation="eager").eval()
    prepared = read(SECTION, ROWS)
    task = tasks.build(SECTION)
    loaded = load(
        schema.Model(source=str(folder), dtype="float32", compute_dtype="float32"),
        schema.Lora(method="lora"),
        seed=0,
        device=torch.device("cpu"),
        shard=lambda block: None,
        architecture=task.architecture(prepared.facts),
    )
    module = task.module(loaded, prepared.facts).eval()
    corpus = prepared.train
    batch = collate(corpus, plan(corpus.lengths, 48, False), np.arange(3), pad_id=0, seed=0)
    with torch.no_grad():
        loss, outputs = module(batch)
    expected = 0.0
    for number, output in zip(batch.documents, outputs, strict=True):
        source = words(ROWS[number]["source"], return_tensors="pt")["input_ids"]
        target = words(ROWS[number]["target"], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected += reference(input_ids=source, labels=target).loss.item() * target.numel()
            alone = reference.generate(
                input_ids=source, max_new_tokens=6, do_sample=False, eos_token_id=3, pad_token_id=0
            )
        ours = words.decode(output, skip_special_tokens=True)
        assert ours == words.decode(alone[0], skip_special_tokens=True)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_an_empty_batch_weighs_nothing(read, folder):
    prepared = read(SECTION, ROWS)
    task = tasks.build(SECTION)
    loaded = load(
        schema.Model(source=str(folder), dtype="float32", compute_dtype="float32"),
        schema.Lora(method="lora"),
        seed=0,
        device=torch.device("cpu"),
        shard=lambda block: None,
        architecture=task.architecture(prepared.facts),
    )
    module = task.module(loaded, prepared.facts).train()
    rows = plan(prepared.train.lengths, 48, False)
    loss = module(collate(prepared.train, rows, np.array([], np.int64), pad_id=0, seed=0))
    loss.backward()
    assert loss.item() == 0
    assert all(
        p.grad is not None and not p.grad.any() for name, p in saved.trainable(module.model).items() if "lora_B" in name
    )


def test_scores_are_those_of_their_formulas():
    exact = text_scores(["the blue sky is never seven"], ["the blue sky is never seven"]).numbers
    assert exact == {"bleu": pytest.approx(100), "chrf": pytest.approx(100), "rouge_l": pytest.approx(1)}
    half = text_scores(["a b c d"], ["a x c y"]).numbers
    assert half["rouge_l"] == pytest.approx(0.5)  # the longest common subsequence, a c, is half of both
    assert text_scores(["a b c d e"], ["a b c d"]).numbers["bleu"] == pytest.approx(100 * np.exp(1 - 5 / 4))  # brevity


def test_wrong_columns_and_values_are_told(problems):
    (problem,) = problems(SECTION, [{"text": "a", "summary": "b"}])
    assert "source_target wants source, target" in problem
    (problem,) = problems(SECTION, [ROWS[0], {"source": "sun", "target": ["tea"]}])
    assert "line 2: 'target' must be a string, got [\"tea\"]" in problem
