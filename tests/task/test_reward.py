"""Rewards are those of transformers on each text alone; the loss is that of Bradley and Terry."""

import json
import math

import numpy as np
import pytest
import small
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification

from distft.config import schema
from distft.data.loader import collate
from distft.data.pack import plan
from distft.model.load import load
from distft.task import build as tasks

SECTION = schema.Reward(name="reward")
ROWS = [
    {"prompt": "what is the sun ", "chosen": "blue sky", "rejected": "rain"},
    {"prompt": "tea ", "chosen": "never", "rejected": "seven rain in paris"},
    {"prompt": "ann works at ", "chosen": "acme globex", "rejected": "the blue sky"},
]


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_rewards_and_loss_are_those_of_each_text_alone(read, words, tmp_path, family, packing):
    torch.manual_seed(0)
    shape = AutoConfig.for_model(**{**small.MODELS[family], "num_labels": 1})
    AutoModelForSequenceClassification.from_config(shape).save_pretrained(tmp_path / family)
    reference = AutoModelForSequenceClassification.from_pretrained(tmp_path / family).eval()
    prepared = read(SECTION, ROWS)
    source = schema.Model(source=str(tmp_path / family), dtype="float32", compute_dtype="float32")
    task, device = tasks.build(SECTION), torch.device("cpu")
    shape = task.architecture(prepared.facts)
    lora = schema.Lora(method="lora")
    loaded = load(source, lora, seed=0, device=device, shard=lambda block: None, architecture=shape)
    module = task.module(loaded, prepared.facts).eval()
    rows = plan(prepared.train.lengths, 48, packing)
    batch = collate(prepared.train, rows, np.arange(3 if not packing else len(rows)), pad_id=0, seed=0)
    expected = torch.zeros(3, 2)
    for i, row in enumerate(ROWS):
        for j, answer in enumerate(("chosen", "rejected")):
            ids = words(row["prompt"] + row[answer], return_tensors="pt")["input_ids"]
            expected[i, j] = reference(input_ids=ids).logits.detach()[0, 0]
    in_batch = expected[list(batch.documents)]
    torch.testing.assert_close(module.rewards(batch).detach(), in_batch, rtol=1e-4, atol=1e-5)
    loss, margins = module(batch)
    wanted = [chosen - rejected for chosen, rejected in in_batch.tolist()]
    assert margins == pytest.approx(wanted, rel=1e-3, abs=1e-5)
    assert loss.item() == pytest.approx(sum(math.log(1 + math.exp(-margin)) for margin in wanted), rel=1e-5)
    scores = task.scores(dict(zip(batch.documents, margins, strict=True)), prepared.train, prepared.facts)
    assert scores.numbers["accuracy"] == pytest.approx(sum(margin > 0 for margin in wanted) / 3)
    assert scores.numbers["margin"] == pytest.approx(sum(wanted) / 3, rel=1e-3)


def test_a_run_s_adapter_holds_the_scalar_head_and_loads_with_peft(commands, words_folder, tmp_path):
    words = small.run_words("reward", words_folder, tmp_path, small.LLAMA, small.pair)
    ended = commands.run(*words, "steps=3")
    assert ended.code == 0, ended.output
    run = tmp_path / "run"
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert {"loss", "margin", "accuracy"} <= set(last)
    base = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(run / "adapter"))
    assert base.score.weight.shape == (1, 32)
    before = base.score.weight.clone()
    loaded = PeftModel.from_pretrained(base, run / "adapter")
    assert not torch.equal(loaded.get_base_model().score.modules_to_save["default"].weight, before)
