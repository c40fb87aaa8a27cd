"""distft.evaluate prompt=: what the table says is what plain transformers and PEFT say of the same texts."""

import json
import subprocess
import sys

import command_runs
import numpy as np
import pytest

EVALUATE = "distft.evaluate"
TEXT = "{% for shot in shots %}\n{{ shot.text }} = {{ shot.answer }}\n{% endfor %}\n{{ text }} ="
WORDS = {"even": "figure two", "odd": "number one"}


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """The words that ask labelled rows through a prompt."""
    folder = tmp_path_factory.mktemp("asked")
    (folder / "p.jinja").write_text(TEXT)
    for name, numbers in (("train", range(50, 90)), ("eval", range(20))):
        rows = [{"text": f"Say number {i}", "label": "odd" if i % 2 else "even"} for i in numbers]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = "{" + ", ".join(f"{label}: {word}" for label, word in WORDS.items()) + "}"
    return [
        f"prompt={folder / 'p.jinja'}",
        f"data.train={folder / 'train.jsonl'}",
        f"data.eval={folder / 'eval.jsonl'}",
        f"answers.words={words}",
    ]


def reference(chances: np.ndarray) -> dict[str, float]:
    """Loss and accuracy over the held-out rows."""
    truth = np.arange(20) % 2
    return {
        "loss": -np.log(chances[np.arange(20), truth]).mean(),
        "accuracy": (chances.argmax(1) == truth).mean(),
    }


@pytest.fixture(scope="module")
def chances(child, base):
    texts = [f"Say number {i} =" for i in range(20)]
    said = [f" {word}" for word in WORDS.values()]
    return lambda adapter: np.array(child(command_runs.chances_of_folder, base, adapter, texts, said))


def numbers(row: dict) -> dict[str, float]:
    return {name: row[name] for name in ("loss", "accuracy")}


def test_base_and_adapter_stand_in_one_table_with_and_without_shots(trained, command, asked, chances):
    run = trained("lora")
    done = command(EVALUATE, f"run={run}", *asked, "shots=[0,4]")
    assert done.code == 0, done.err
    result = json.loads((run / "fewshot.json").read_text())
    rows = result["rows"]
    assert [(row["model"], row["shots"]) for row in rows] == [("base", 0), ("base", 4), ("lora", 0), ("lora", 4)]
    assert result["documents"] == 20 and result["words"] == WORDS
    for row, adapter in ((rows[0], None), (rows[2], run / "adapter")):
        assert numbers(row) == pytest.approx(reference(chances(adapter)), rel=1e-4)
        assert f"{row['loss']:.4f}" in done.out
    assert rows[0]["loss"] != rows[2]["loss"]


def test_an_ensemble_is_the_mean_of_its_members_probabilities(trained, command, asked, chances):
    runs = [trained("lora"), trained("again")]
    done = command(EVALUATE, f"ensemble=[{','.join(map(str, runs))}]", *asked)
    assert done.code == 0, done.err
    rows = json.loads((runs[0] / "fewshot.json").read_text())["rows"]
    assert [row["model"] for row in rows] == ["lora", "again", "ensemble"]
    mean = np.mean([chances(run / "adapter") for run in runs], axis=0)
    assert numbers(rows[2]) == pytest.approx(reference(mean), rel=1e-4)


def test_a_base_without_a_run_is_asked_and_leaves_nothing_behind(command, words, trained, asked, place):
    trained("lora")
    before = sorted(place.rglob("*"))
    base = [word for word in words if word.startswith(("model=", "model.", "adapter"))]
    done = command(EVALUATE, *base, *asked, "shots=2")
    assert done.code == 0, done.err
    assert "base" in done.out and "accuracy" in done.out
    assert sorted(place.rglob("*")) == before


def test_replies_are_judged_by_the_word_they_begin_with(trained, command, child, base, asked):
    run = trained("lora")
    done = command(EVALUATE, f"run={run}", *asked, "answers.scoring=generation")
    assert done.code == 0, done.err
    rows = json.loads((run / "fewshot.json").read_text())["rows"]
    texts = [f"Say number {i} =" for i in range(20)]
    replies = child(command_runs.replies_of_folder, base, run / "adapter", texts, 6)
    found = [reply.strip().lower().startswith(WORDS["odd" if i % 2 else "even"]) for i, reply in enumerate(replies)]
    assert rows[1]["accuracy"] == sum(found) / 20
    assert 0 <= rows[1]["unmatched"] <= 1 and "loss" not in rows[1]


def test_bad_input_is_named_before_torch_is_imported(tmp_path):
    (tmp_path / "p.jinja").write_text("{{ text }} {{ label }}")
    for words, told in {
        ("model=tiny", "prompt=./p.jinjja"): ["prompt: must be a file", "did you mean prompt=p.jinja?"],
        ("model=tiny", "prompt=p.jinja", "shots=4"): ["prompt: must not show a row's label", "shots: must be 0"],
        ("model=tiny", "prompt=p.jinja", "answers.scoring=x"): ["must be one of likelihood, generation"],
        ("shots=4",): ["run: must be set"],
    }.items():
        argv = [sys.executable, "-X", "importtime", "-m", EVALUATE, *words]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert all(sentence in done.stderr for sentence in told), (words, done.stderr[-800:])
        assert not [line for line in done.stderr.splitlines() if line.endswith("| torch")]


def test_what_does_not_fit_the_run_or_the_data_is_named(trained, command, asked, tmp_path):
    run = trained("lora")
    (tmp_path / "columns.jsonl").write_text('{"question": "Hi", "label": "odd"}\n')
    for words, told in {
        ("shots=99",): "shots: must be at most the rows to draw from, 40",
        (f"data.eval={tmp_path / 'columns.jsonl'}",): "got question, label",
    }.items():
        done = command(EVALUATE, f"run={run}", *asked, *words)
        assert done.code == 2 and told in done.err, (words, done)
    no_words = [word for word in asked if not word.startswith("answers.words")]
    done = command(EVALUATE, f"run={run}", *no_words, "answers.words={even: x}")
    assert done.code == 2 and "'label' must be a label of answers.words (even), got \"odd\"" in done.err, done
    done = command(EVALUATE, f"run={run}", "shots=4", "answers.chat=true")
    assert done.code == 2 and "shots: belongs to prompt=" in done.err and "answers: belongs to" in done.err


def test_an_encoder_is_not_asked_for_words(command, words, asked):
    model = [word for word in words if word.startswith(("model=", "model."))]
    bert = "model_type: bert, vocab_size: 400, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2"
    done = command(EVALUATE, *model, f"model.random_init={{{bert}, intermediate_size: 32}}", *asked)
    assert done.code == 2 and "must be asked of a model that writes text, got an encoder" in done.err, done
