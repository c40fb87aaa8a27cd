"""Labels are learnt from the data; losses, logits and metrics are those of transformers and of their formulas."""

import json

import numpy as np
import pytest
import small
import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification

from distft.config import schema
from distft.data.loader import collate
from distft.data.pack import plan
from distft.errors import ConfigError
from distft.model.load import load
from distft.task import build as tasks
from distft.task import classification

SECTION = schema.SequenceClassification(name="sequence_classification")
FAMILIES = {
    "llama": {"num_key_value_heads": 2, "pad_token_id": 0},
    "qwen2": {"num_key_value_heads": 2, "pad_token_id": 0},
    "bert": {},
    "roberta": {"pad_token_id": 1, "type_vocab_size": 1},
    "distilbert": {"dim": 32, "hidden_dim": 64, "n_heads": 4, "n_layers": 2},
    "electra": {"embedding_size": 32},
}
COMMON = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 66,
    "initializer_range": 0.3,
}
TEXTS = ["sun rain what", "tea", "ann lives in rome", "the blue sky never", "bob works at acme seven", "is"]


def rows(labels):
    return [{"text": text, "label": label} for text, label in zip(TEXTS, labels, strict=True)]


def base_folder(family, tmp_path, num_labels):
    """A random classifier of the family in a folder, and as transformers loads it."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **COMMON, **FAMILIES[family], num_labels=num_labels)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / family)
    return tmp_path / family, AutoModelForSequenceClassification.from_pretrained(tmp_path / family).eval()


def all_of(prepared, packing):
    """Every document in one batch."""
    corpus = prepared.train
    packed = plan(corpus.lengths, 48, packing)
    return collate(corpus, packed, np.arange(len(packed)), pad_id=0, seed=0)


def module_on(folder, prepared, section=SECTION):
    source = schema.Model(source=str(folder), dtype="float32", compute_dtype="float32")
    task = tasks.build(section)
    loaded = load(
        source,
        schema.Lora(method="lora"),
        seed=0,
        device=torch.device("cpu"),
        shard=lambda block: None,
        architecture=task.architecture(prepared.facts),
    )
    return task.module(loaded, prepared.facts).eval()


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_logits_are_those_of_transformers_on_each_text_alone(read, words, tmp_path, family, packing):
    prepared = read(SECTION, rows(["b", "a", "c", "a", "c", "b"]))
    folder, reference = base_folder(family, tmp_path, 3)
    module, batch = module_on(folder, prepared), all_of(prepared, packing)
    loss, outputs = module(batch)
    expected = 0.0
    for number, output in zip(batch.documents, outputs, strict=True):
        ids = words(TEXTS[number], return_tensors="pt")["input_ids"]
        logits = reference(input_ids=ids).logits[0].detach()
        np.testing.assert_allclose(output, logits.numpy(), rtol=1e-4, atol=1e-5)
        expected += F.cross_entropy(logits, torch.tensor("abc".index("bacacb"[number]))).item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_second_text_of_a_pair_has_token_type_one(read, words, tmp_path):
    both = zip(TEXTS, TEXTS[::-1], strict=True)
    pairs = [{"text_a": a, "text_b": b, "label": "xy"[i % 2]} for i, (a, b) in enumerate(both)]
    prepared = read(SECTION, pairs)
    folder, reference = base_folder("bert", tmp_path, 2)
    batch = all_of(prepared, packing=True)
    _, outputs = module_on(folder, prepared)(batch)
    for number, output in zip(batch.documents, outputs, strict=True):
        encoded = words(pairs[number]["text_a"], pairs[number]["text_b"], return_tensors="pt")
        assert encoded["token_type_ids"].any()
        np.testing.assert_allclose(output, reference(**encoded).logits[0].detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("labels", "kind"),
    [([["a"], ["b", "a"], [], ["c"], ["b"], ["a", "c"]], "multi_label"), ([0.5, 1, -2, 3.25, 0, 1], "regression")],
)
def test_losses_of_several_labels_and_of_numbers_are_those_of_transformers(read, words, tmp_path, labels, kind):
    prepared = read(SECTION, rows(labels))
    folder, reference = base_folder("bert", tmp_path, 3 if kind == "multi_label" else 1)
    reference.config.problem_type = "multi_label_classification" if kind == "multi_label" else "regression"
    batch = all_of(prepared, packing=False)
    loss, _ = module_on(folder, prepared)(batch)
    expected = 0.0
    for text, label in zip(TEXTS, labels, strict=True):
        wanted = [float(name in label) for name in "abc"] if kind == "multi_label" else [float(label)]
        ids = words(text, return_tensors="pt")["input_ids"]
        expected += reference(input_ids=ids, labels=torch.tensor([wanted])).loss.item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_balanced_weights_count_each_class_alike_and_keep_the_loss_s_scale(read, tmp_path):
    prepared = read(SECTION, rows(["a", "a", "a", "a", "b", "b"]))
    assert classification.weights("balanced", ["a", "b"], [4, 2]) == pytest.approx([0.75, 1.5])
    folder, _ = base_folder("bert", tmp_path, 2)
    balanced = SECTION.model_copy(update={"class_weights": "balanced"})
    batch = all_of(prepared, packing=False)
    _, outputs = module_on(folder, prepared)(batch)
    losses = F.cross_entropy(torch.tensor(np.stack(outputs)), torch.tensor([0, 0, 0, 0, 1, 1]), reduction="none")
    wanted = sum(w * loss for w, loss in zip([0.75] * 4 + [1.5] * 2, losses.tolist(), strict=True))
    assert module_on(folder, prepared, balanced)(batch)[0].item() == pytest.approx(wanted, rel=1e-5)


def test_weights_must_name_each_class(read):
    with pytest.raises(ConfigError, match=r"task\.class_weights: must name each class .* got a, x; add or remove b, x"):
        classification.weights({"a": 1.0, "x": 2.0}, ["a", "b"], [4, 2])


def test_metrics_of_classes_are_their_formulas():
    truth, found = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0, 2])
    scores = classification.scores(truth, found, ["a", "b", "c"])
    # a: 2 of 3 found are right, 2 of 3 are found; b: 1 of 2 and 1 of 2; c: all.
    assert scores.numbers["accuracy"] == scores.numbers["micro_f1"] == pytest.approx(4 / 6)
    assert scores.numbers["macro_f1"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    table = json.loads(scores.files["per_class.json"])
    assert table["b"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "rows": 2.0}
    assert (
        "plotly" in scores.files["confusion_matrix.html"] and "<script src" not in scores.files["confusion_matrix.html"]
    )


def test_metrics_of_several_classes_count_whole_rows_and_single_labels():
    truth, found = np.array([[1, 0], [1, 1], [0, 0]], bool), np.array([[1, 0], [0, 1], [0, 0]], bool)
    numbers = classification.multi_label_scores(truth, found, ["a", "b"]).numbers
    assert numbers["accuracy"] == pytest.approx(2 / 3)
    assert numbers["micro_f1"] == pytest.approx(2 * 2 / (2 * 2 + 1)) and numbers["macro_f1"] == pytest.approx(5 / 6)


def test_metrics_of_numbers_are_their_formulas():
    truth, found = np.array([1.0, 2, 3, 4]), np.array([1.0, 4, 9, 16])
    numbers = classification.regression_scores(truth, found).numbers
    assert numbers["mse"] == pytest.approx((0 + 4 + 36 + 144) / 4)
    assert numbers["spearman"] == pytest.approx(1)
    dx, dy = truth - truth.mean(), found - found.mean()
    assert numbers["pearson"] == pytest.approx((dx * dy).sum() / np.sqrt((dx**2).sum() * (dy**2).sum()))


def test_labels_are_learnt_from_what_is_trained_on(read):
    facts = read(SECTION, rows(["b", "a", "b", "a", "b", True])).facts
    assert (facts["kind"], facts["labels"], facts["counts"]) == ("single_label", ["True", "a", "b"], [1, 2, 3])
    assert read(SECTION, rows([1, 2, 3, 1, 2, 3])).facts["kind"] == "regression"
    named = SECTION.model_copy(update={"kind": "single_label"})
    assert read(named, rows([1, 2, 3, 1, 2, 3])).facts["labels"] == ["1", "2", "3"]


def test_labels_of_a_trained_run_are_kept_on_other_data(read):
    facts = read(SECTION, rows(["b", "a", "c", "a", "b", "c"])).facts
    other = read(SECTION, rows(["c", "c", "b", "b", "c", "c"]), facts=facts)
    assert other.facts == facts
    assert [other.train.document(i)[1].tolist() for i in range(3)] == [[2], [2], [1]]


def test_renamed_labels_are_other_data(read):
    digests = {read(SECTION, rows([x, y] * 3)).train.digest for x, y in (("a", "b"), ("a", "c"))}
    assert len(digests) == 2


def test_a_label_that_is_not_trained_on_is_named_with_its_line(problems):
    (problem,) = problems(SECTION, rows(["a", "b"] * 3), rows(["a", "b", "x", "a", "a", "a"]))
    assert (
        problem.startswith("data.eval: ")
        and "eval.jsonl, line 3: 'label' must be a class that is trained on" in problem
    )
    assert "(a, b), got 'x'" in problem


def test_wrong_columns_are_told_with_those_wanted(problems):
    (problem,) = problems(SECTION, [{"sentence": "tea", "label": "a"}])
    assert "got sentence, label" in problem and "labelled wants text, label" in problem


def test_one_class_alone_is_refused(problems):
    (problem,) = problems(SECTION, rows(["a"] * 6))
    assert "column 'label' must have at least two classes, got a" in problem


def test_labels_of_mixed_kinds_are_refused_by_line(problems):
    (problem,) = problems(SECTION, rows(["a", "b", ["a"], "a", "b", "a"]))
    assert "line 3: 'label' must be one class, as in the first row, got [\"a\"]" in problem


def test_a_number_that_is_none_is_refused_by_line(problems):
    (problem,) = problems(SECTION, rows([1.5, 2, "three", 4, 5, 6]))
    assert "line 3: 'label' must be a number, got \"three\"" in problem


def test_long_texts_are_cut_with_their_frame_kept_or_dropped(read, words):
    long = [{"text": " ".join(small.WORDS), "label": "a"}, {"text": "tea", "label": "b"}]
    cut = read(SECTION, long, max_length=8).train
    assert cut.counts.truncated == 1 and cut.lengths.tolist() == [8, 3]
    assert cut.document(0)[0].tolist() == [2, *words(" ".join(small.WORDS[:6]))["input_ids"][1:-1], 3]
    assert read(SECTION, long, max_length=8, too_long="drop").train.counts.dropped == {"longer than 8 tokens": 1}


def test_a_family_whose_head_is_not_known_is_refused(read, tmp_path):
    prepared = read(SECTION, rows(["a", "b"] * 3))
    config = AutoConfig.for_model("xlnet", vocab_size=40, d_model=32, n_layer=1, n_head=4, d_inner=64)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "xlnet")
    with pytest.raises(ConfigError, match=r"model\.source: task=sequence_classification knows the heads of decoders"):
        module_on(tmp_path / "xlnet", prepared)


def test_a_run_s_adapter_holds_the_head_and_loads_with_peft(commands, words_folder, tmp_path):
    words = small.run_words("sequence_classification", words_folder, tmp_path, small.BERT, small.labelled)
    ended = commands.run(*words, "steps=3")
    assert ended.code == 0, ended.output
    run = tmp_path / "run"
    evaluated = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "accuracy", "macro_f1", "micro_f1"} <= set(evaluated[-1])
    assert (run / "confusion_matrix.html").exists() and (run / "per_class.json").exists()
    config = json.loads((run / "adapter" / "config.json").read_text())
    assert config["id2label"] == {"0": "art", "1": "news", "2": "sport"}
    base = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(run / "adapter"))
    before = base.classifier.weight.clone()
    loaded = PeftModel.from_pretrained(base, run / "adapter")
    assert not torch.equal(loaded.get_base_model().classifier.modules_to_save["default"].weight, before)


def test_smoothed_labels_are_those_of_cross_entropy_in_training_alone(read, tmp_path):
    prepared = read(SECTION, rows(["b", "a", "c", "a", "c", "b"]))
    module, batch = module_on(base_folder("bert", tmp_path, 3)[0], prepared), all_of(prepared, False)
    plain = module(batch)[0].item()
    module.regularise(schema.Regularisation(label_smoothing=0.3))
    assert module(batch)[0].item() == plain
    logits = module.logits(batch).detach()
    wanted = F.cross_entropy(logits, batch.targets[:, 0], reduction="sum", label_smoothing=0.3).item()
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    assert module.train()(batch).item() == pytest.approx(wanted, rel=1e-5) != pytest.approx(plain, rel=1e-3)


def test_labels_of_several_classes_are_not_smoothed(read, tmp_path):
    prepared = read(SECTION, rows([["b"], ["a", "b"], ["c"], ["a"], [], ["b"]]))
    module = module_on(base_folder("bert", tmp_path, 3)[0], prepared)
    with pytest.raises(ConfigError, match=r"regularisation\.label_smoothing: must be 0 where .* multi_label labels"):
        module.regularise(schema.Regularisation(label_smoothing=0.3))
