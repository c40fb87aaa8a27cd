"""Losses, margins and gradients of pairs are those of the papers' formulas on full logits of each answer alone."""

import json
import math
from copy import deepcopy

import numpy as np
import pytest
import small
import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from distft.config import schema
from distft.data.loader import collate
from distft.data.pack import plan
from distft.errors import ConfigError
from distft.model.load import load
from distft.task import build as tasks

DPO = schema.Preference(name="preference")
SECTIONS = {
    "dpo": DPO,
    "dpo, smoothed": DPO.model_copy(update={"beta": 0.7, "label_smoothing": 0.2}),
    "ipo": DPO.model_copy(update={"loss": "ipo", "beta": 0.3}),
    "orpo": DPO.model_copy(update={"loss": "orpo", "beta": 0.4}),
    "simpo": DPO.model_copy(update={"loss": "simpo"}),
}
ROWS = [
    {"prompt": "what is the sun ", "chosen": "blue sky", "rejected": "rain"},
    {"prompt": "tea ", "chosen": "never", "rejected": "seven rain in paris"},
    {"prompt": "ann works at ", "chosen": "acme globex", "rejected": "the blue sky"},
]


def module_on(folder, section, adapter=None):
    source = schema.Model(source=str(folder), dtype="float32", compute_dtype="float32")
    adapter = adapter or schema.Lora(method="lora", r=4, dropout=0.5)
    device = torch.device("cpu")
    task = tasks.build(section)
    loaded = load(source, adapter, seed=0, device=device, shard=lambda block: None, architecture=task.architecture({}))
    module = task.module(loaded, {})
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(len(name)))
    return module


def all_of(prepared, packing=True):
    corpus = prepared.train
    rows = plan(corpus.lengths, 48, packing)
    return collate(corpus, rows, np.arange(len(rows)), pad_id=0, seed=0)


def log_probabilities(model, words, row, answer):
    """Of the answer's tokens, from full logits of the one text: [L]."""
    prompt = len(words(row["prompt"].strip())["input_ids"]) - 1  # without its separator, which ends the answer
    ids = words(row["prompt"] + row[answer], return_tensors="pt")["input_ids"]
    logits = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return logits.gather(1, ids[0, 1:, None])[prompt - 1 :, 0]


def expected(section, words, policy, reference):
    """Sum of the losses and the margins, written out."""
    beta, total, margins = section.strength, 0.0, []
    for row in ROWS:
        chosen, rejected = (log_probabilities(policy, words, row, answer) for answer in ("chosen", "rejected"))
        with torch.no_grad():
            base = [log_probabilities(reference, words, row, answer) for answer in ("chosen", "rejected")]
        if section.loss == "dpo":
            margin = beta * ((chosen.sum() - base[0].sum()) - (rejected.sum() - base[1].sum()))
            p, e = torch.sigmoid(margin), section.label_smoothing
            loss = -(1 - e) * p.log() - e * (1 - p).log()
        elif section.loss == "ipo":
            h = (chosen.mean() - base[0].mean()) - (rejected.mean() - base[1].mean())
            margin, loss = beta * h, (h - 1 / (2 * beta)) ** 2
        else:
            margin = beta * (chosen.mean() - rejected.mean())
            if section.loss == "simpo":
                loss = -torch.sigmoid(margin - 1.0).log()  # gamma is half of its beta, 2
            else:
                p, q = chosen.mean().exp(), rejected.mean().exp()
                odds = (p / (1 - p)) / (q / (1 - q))
                loss = -chosen.mean() - beta * torch.sigmoid(odds.log()).log()
        total = total + loss
        margins.append(margin.item())
    return total, margins


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("name", SECTIONS)
def test_loss_margins_and_gradients_are_those_of_the_formula(read, words, base_folder, name, packing):
    section = SECTIONS[name]
    prepared = read(section, ROWS)
    module, batch = module_on(base_folder, section), all_of(prepared, packing)
    reference = AutoModelForCausalLM.from_pretrained(base_folder).eval()
    policy = deepcopy(module.model).eval()
    policy.get_base_model().set_attn_implementation("sdpa")
    wanted, margins = expected(section, words, policy, reference)
    loss, outputs = module.eval()(batch)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert [outputs[batch.documents.index(i)] for i in range(3)] == pytest.approx(margins, rel=1e-4, abs=1e-6)
    module.train()
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    trained = module(batch)
    assert trained.item() == pytest.approx(wanted.item(), rel=1e-5)
    trained.backward()
    wanted.backward()
    wants = dict(policy.named_parameters())
    compared = 0
    for key, parameter in module.model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, wants[key].grad, rtol=1e-3, atol=1e-5)
            compared += bool(parameter.grad.any())
    assert compared == 2 * 7 * 2


def test_the_reference_is_the_base_even_while_dropout_is_on(read, base_folder):
    prepared = read(DPO, ROWS)
    module, batch = module_on(base_folder, DPO), all_of(prepared)
    torch.manual_seed(1)
    first = module.train()._reference(batch)
    torch.manual_seed(2)
    assert torch.equal(module._reference(batch), first)
    assert module.model.training and all(p.requires_grad for n, p in module.named_parameters() if "lora" in n)
    fresh = module_on(base_folder, DPO).eval()
    for name, parameter in fresh.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    loss, margins = fresh(batch)
    assert loss.item() == pytest.approx(3 * math.log(2), rel=1e-6) and margins == pytest.approx([0, 0, 0], abs=1e-6)


def test_methods_without_a_reference_run_the_model_once(read, base_folder):
    passes = {}
    for name in ("dpo", "simpo", "orpo"):
        module, batch = module_on(base_folder, SECTIONS[name]), all_of(read(DPO, ROWS))
        count = []
        module.settle(batch.input_ids.device)
        module.base.base_model.register_forward_hook(lambda *_, count=count: count.append(1))
        module.train()(batch)
        passes[name] = len(count)
    assert passes == {"dpo": 2, "simpo": 1, "orpo": 1}


def test_an_empty_batch_gives_a_zero_that_reaches_what_trains(read, base_folder):
    prepared = read(DPO, ROWS)
    rows = plan(prepared.train.lengths, 48, True)
    module = module_on(base_folder, DPO).train()
    loss = module(collate(prepared.train, rows, np.arange(0), pad_id=0, seed=0))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters() if p.requires_grad)


def test_every_weight_may_train_without_a_reference(read, words, base_folder):
    section = SECTIONS["orpo"]
    module, batch = module_on(base_folder, section, schema.Full(method="full")), all_of(read(section, ROWS))
    policy = AutoModelForCausalLM.from_pretrained(base_folder).eval()
    wanted, _ = expected(section, words, policy, policy)
    wanted.backward()
    module.train()(batch).backward()
    for (name, ours), theirs in zip(module.model.named_parameters(), policy.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_a_loss_with_a_reference_refuses_a_model_without_an_adapter(base_folder):
    with pytest.raises(ConfigError, match="adapter: must be one that can be switched off"):
        module_on(base_folder, DPO, schema.Full(method="full"))


def test_an_encoder_is_refused(tmp_path):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**small.BERT)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.source: must be a decoder for task=preference, got a bert"):
        module_on(tmp_path, DPO)


def test_a_pair_is_one_document_of_two_segments(read, words):
    corpus = read(DPO, ROWS[:1]).train
    ids, targets = corpus.document(0)
    texts = [words(ROWS[0]["prompt"] + ROWS[0][answer])["input_ids"] for answer in ("chosen", "rejected")]
    assert ids.tolist() == texts[0] + texts[1]
    assert corpus.segments(0).tolist() == [len(text) for text in texts]
    answers = [texts[0][5:], texts[1][5:]]  # after [CLS] what is the sun
    assert targets[targets >= 0].tolist() == answers[0] + answers[1]
    assert corpus.num_targets == 1


def test_an_answer_does_not_see_the_other_one(read, base_folder):
    prepared = read(SECTIONS["simpo"], ROWS[:1])
    other = read(SECTIONS["simpo"], [{**ROWS[0], "chosen": "rome paris"}])
    module = module_on(base_folder, SECTIONS["simpo"]).eval()
    start = prepared.train.segments(0)[0]
    states = [module.encode(all_of(each))[0, start:] for each in (prepared, other)]
    torch.testing.assert_close(*states)


def test_the_longer_answer_is_cut_first_and_a_pair_without_room_is_dropped(read):
    rows = [
        {"prompt": "sun ", "chosen": "tea " * 12, "rejected": "rain"},
        {"prompt": "sun ", "chosen": "tea " * 12, "rejected": "rain " * 12},
        {"prompt": "blue " * 20, "chosen": "tea", "rejected": "rain"},
        {"prompt": "sun ", "chosen": "tea " * 12 + "ann", "rejected": "tea " * 12 + "bob"},
    ]
    corpus = read(DPO, rows, max_length=16).train
    assert [corpus.segments(i).tolist() for i in range(2)] == [[12, 4], [8, 8]]
    assert (corpus.num_documents, corpus.counts.truncated) == (2, 2)
    assert corpus.counts.dropped == {
        "no token of an answer where a pair has 16": 1,
        "both answers are the same tokens": 1,
    }
    assert read(DPO, rows, max_length=20, too_long="drop").train.num_documents == 1


def test_equal_answers_are_an_error_that_names_the_row(problems):
    same = {"prompt": "tea ", "chosen": "sun", "rejected": "sun"}
    (problem,) = problems(DPO, [*ROWS, same])
    assert "train.jsonl, line 4: 'chosen' and 'rejected' must differ, got \"sun\" twice" in problem


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": None}, "must have 'rejected'"),
        ({"prompt": "a", "chosen": "b", "rejected": 3}, "'rejected' must be a string or a list of messages, got 3"),
        ({"prompt": "a", "chosen": [{"role": "x"}], "rejected": "b"}, "a message's 'content' must be a string"),
        ({"prompt": [], "chosen": "b", "rejected": "c"}, "'prompt' must be a string or a list of messages"),
        (
            {"prompt": "a", "chosen": [{"role": "assistant", "content": "b"}], "rejected": "c"},
            "must be all strings or all lists of messages",
        ),
    ],
)
def test_malformed_pairs_are_named_with_their_line(problems, row, said):
    (problem,) = problems(DPO, [ROWS[0], row])
    assert "line 2: " in problem and said in problem


def test_columns_of_another_task_are_refused(problems):
    (problem,) = problems(DPO, [{"prompt": "tea", "completion": "sun"}])
    assert "preference wants prompt, chosen, rejected" in problem


def test_chats_go_through_the_chat_template(read, words):
    words = deepcopy(words)
    template = "{% for m in messages %}[CLS] {{ m['content'] }} [SEP]{% endfor %}"
    row = {key: [{"role": "user", "content": text}] for key, text in ROWS[0].items()}
    for answer in ("chosen", "rejected"):
        row[answer][0]["role"] = "assistant"
    words.chat_template = template
    (reading,) = tasks.build(DPO).reader(words, schema.Data(train="x"), None).documents([row], "preference")
    text = "[CLS] what is the sun [SEP][CLS] {} [SEP]"
    both = [words(text.format(answer), add_special_tokens=False)["input_ids"] for answer in ("blue sky", "rain")]
    assert reading[0].ids.tolist() == both[0] + both[1]
    answered = [words(f"{answer} [SEP]", add_special_tokens=False)["input_ids"] for answer in ("blue sky", "rain")]
    assert reading[0].ids[reading[0].labels].tolist() == answered[0] + answered[1]


def test_a_run_measures_margin_and_accuracy_and_its_adapter_loads_with_peft(commands, words_folder, tmp_path):
    words = small.run_words("preference", words_folder, tmp_path, small.LLAMA, small.pair)
    ended = commands.run(*words, "steps=3", "evaluation.metric=margin", "evaluation.patience=9")
    assert ended.code == 0, ended.output
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    before, after = (row for row in (rows[0], rows[-1]) if row["split"] == "eval")
    assert before["loss"] == pytest.approx(math.log(2), rel=1e-5) and before["margin"] == pytest.approx(0, abs=1e-6)
    assert after["margin"] != before["margin"] and 0 <= after["accuracy"] <= 1
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model(**small.LLAMA))
    PeftModel.from_pretrained(base, tmp_path / "run" / "adapter")


def test_certain_answers_have_a_finite_loss():
    from distft.task.preference import compare

    policy = torch.tensor([[0.0, -3.0]], requires_grad=True)
    losses, _ = compare(SECTIONS["orpo"], policy, torch.tensor([[2, 3]]), None)
    losses.sum().backward()
    assert losses.isfinite().all() and policy.grad.isfinite().all()
    assert F.softplus(torch.tensor(0.0)) > losses[0]
