"""What greedy decoding writes of held-out answers, told by one pass, is what `generate` writes."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from distft.config import schema
from distft.data.loader import collate
from distft.data.pack import plan
from distft.model.load import load
from distft.task import build as tasks
from distft.task.loss import likeliest_tokens

SECTION = schema.CausalLm(name="causal_lm", exact_match=True)
PROMPTS = ["what is the sun ", "tea ", "ann works at ", "paris rain "]


@pytest.mark.parametrize("packing", [True, False])
def test_exact_match_and_token_accuracy_are_those_of_greedy_decoding(read, words, base_folder, packing):
    model = AutoModelForCausalLM.from_pretrained(base_folder).eval()
    model.generation_config.eos_token_id = None
    rows = [{"prompt": prompt, "completion": "never seven"} for prompt in PROMPTS]
    source = schema.Model(source=str(base_folder), dtype="float32", compute_dtype="float32")
    task = tasks.build(SECTION)
    prepared = read(SECTION, rows)
    loaded = load(
        source,
        schema.Lora(method="lora"),
        seed=0,
        device=torch.device("cpu"),
        shard=lambda block: None,
        architecture=task.architecture({}),
    )
    corpus, rows_of = prepared.train, plan(prepared.train.lengths, 48, packing)
    batch = collate(corpus, rows_of, np.arange(len(rows_of)), pad_id=0, seed=0)
    # Greedy answers written over the targets of the first two documents: those are then exact matches.
    documents = list(batch.documents)
    assert batch.segments is not None
    ids, targets = batch.input_ids.flatten(), batch.targets.flatten()
    for place in (0, 1):
        start, stop = (int(bound) for bound in batch.segments[place, 0])
        first = start + int((targets[start:stop] != -100).nonzero()[0])
        told = ids[start : first + 1].unsqueeze(0)
        answer = model.generate(
            told, attention_mask=torch.ones_like(told), max_new_tokens=stop - first - 1, do_sample=False
        )[0, told.shape[1] :]
        ids[first + 1 : stop], targets[first : stop - 1] = answer, answer
    _, found = task.module(loaded, {}).eval()(batch)
    wanted = []
    for place in range(len(documents)):
        start, stop = (int(bound) for bound in batch.segments[place, 0])
        logits = model(input_ids=ids[start:stop].unsqueeze(0)).logits[0]
        goals = targets[start:stop]
        right = (logits.argmax(-1) == goals)[goals != -100]
        wanted.append([int(right.sum()), len(right)])
    assert found == wanted and all(found[place][0] == found[place][1] > 1 for place in (0, 1))
    assert any(right < count for right, count in found)
    scores = task.scores(dict(zip(documents, found, strict=True)), corpus, {}).numbers
    assert scores["exact_match"] == np.mean([right == count for right, count in wanted])
    assert scores["token_accuracy"] == pytest.approx(np.sum(wanted, 0)[0] / np.sum(wanted, 0)[1])


@pytest.mark.parametrize("vocabulary", [7, 5000])
def test_the_likeliest_token_is_found_by_tiles(monkeypatch, vocabulary):
    monkeypatch.setattr("distft.task.loss.TILE_LOGITS", 2**10)
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(9, 16), torch.randn(vocabulary, 16), torch.randn(vocabulary)
    assert torch.equal(likeliest_tokens(hidden, weight, bias=bias), (hidden @ weight.t() + bias).argmax(1))
    weight[-1], bias[-1] = weight[0], bias[0]
    assert torch.equal(likeliest_tokens(hidden, weight), (hidden @ weight.t()).argmax(1))
