"""Sharded over two ranks, 4-bit bases included, a model chooses as it does on one; every row is asked once."""

import choice_cases
import pytest
import task_cases
from small import MODELS, labelled, write_rows, write_tokenizer

from distft.evaluate.fewshot.prompt_template import Prompt
from distft.evaluate.fewshot.settings import Answers, Wanted

TEXT = "{% for shot in shots %}{{ shot.text }} is {{ shot.answer }} {% endfor %}{{ text }} is"
WORDS = {"sport": "sun", "news": "blue sky", "art": "never"}


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    folder = tmp_path_factory.mktemp("choices")
    source = {"source": str(write_tokenizer(folder / "tokenizer")), "random_init": MODELS["llama"]}
    data = {
        "train": write_rows(folder / "train.jsonl", labelled, 40, seed=1),
        "eval": write_rows(folder / "eval.jsonl", labelled, 13, seed=2),
        "cache_dir": str(folder / "cache"),
    }

    def config(engine, quantization, scoring):
        model = {**source, "quantization": quantization}
        settings = task_cases.config({"name": "causal_lm"}, model, data, engine={"name": engine})
        prompt = Prompt("p.jinja", TEXT, "label", WORDS)
        answers = Answers(words=WORDS, scoring=scoring)
        return settings, Wanted(prompt, [0, 2], 0, answers, [], False, None)

    return config


@pytest.mark.parametrize("scoring", ["likelihood", "generation"])
def test_two_ranks_say_what_one_says(one_rank, two_ranks, make, scoring):
    for engine, quantization in (("fsdp", "none"), ("zero3", "nf4")):
        alone = one_rank.run(choice_cases.table, *make("single", quantization, scoring))[0]
        assert [row["shots"] for row in alone] == [0, 2]
        assert all(0 <= row["accuracy"] <= 1 for row in alone)
        for rows in two_ranks.run(choice_cases.table, *make(engine, quantization, scoring)):
            assert [row["model"] for row in rows] == ["base", "base"]
            for row, single in zip(rows, alone, strict=True):
                assert {**row, "model": 0} == pytest.approx({**single, "model": 0}, rel=1e-5)
