"""Which rows are asked and which are shown: by the seed alone, and never the same."""

import json
from pathlib import Path

import pytest

from distft.config import schema
from distft.data.prepare import prepare
from distft.errors import ConfigError
from distft.evaluate.fewshot.prompt_template import Prompt
from distft.evaluate.fewshot.prompt_template import check as check_prompt
from distft.evaluate.fewshot.rows import draw, read
from distft.task import build as tasks

TEXT = "{% for shot in shots %}\n{{ shot.text }} = {{ shot.answer }}\n{% endfor %}\n{{ text }} ="
PROMPT = Prompt("topic.jinja", TEXT, "label", {})


def labelled(count: int, first: int = 0) -> list[dict]:
    return [
        {"text": f"Text  {i}", "label": ["a", "b", "c"][i % 3 if i % 7 else 0]} for i in range(first, first + count)
    ]


@pytest.fixture
def data(tmp_path: Path):
    def make(train: list[dict], held_out: list[dict] | None = None, **options) -> schema.Data:
        files = {}
        for name, rows in (("train", train), ("eval", held_out or [])):
            if rows:
                files[name] = str(tmp_path / f"{name}.jsonl")
                Path(files[name]).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return schema.Data(**files, cache_dir=str(tmp_path / "cache"), **options)

    return make


def test_shots_are_of_each_label_in_turn_and_the_seeds_own(data):
    rows = read(data(labelled(60), labelled(9, first=100)), PROMPT, needs_pool=True)
    assert (len(rows.held_out), len(rows.pool), rows.labels) == (9, 60, ["a", "b", "c"])
    draws = [draw(rows, PROMPT, 8, seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    counts = [sum(shot["label"] == label for shot in draws[0]) for label in rows.labels]
    assert sorted(counts) == [2, 3, 3]
    assert [shot["text"] for shot in draw(rows, PROMPT, 60, 0)] != [row["text"] for row in rows.pool]
    assert len({shot["text"] for shot in draw(rows, PROMPT, 60, 0)}) == 60


def test_a_row_that_is_asked_is_never_shown(data):
    held_out = labelled(9)
    rows = read(data([*labelled(30), {"text": "text 3", "label": "b"}], held_out), PROMPT, needs_pool=True)
    assert {row["text"] for row in rows.pool} == {row["text"] for row in labelled(30)[9:]}, "spaces and capitals aside"
    with pytest.raises(ConfigError, match="shots: must have rows to be drawn from"):
        read(data(held_out, held_out), PROMPT, needs_pool=True)
    with pytest.raises(ConfigError, match="shots: must be at most the rows to draw from, 21, got 22"):
        draw(rows, PROMPT, 22, 0)


def test_what_training_holds_out_is_what_is_asked(data, tmp_path):
    from small import write_tokenizer

    from distft.model.tokenizer import load_tokenizer

    settings = data(labelled(200), eval_fraction=0.3)
    asked = {row["text"] for row in read(settings, PROMPT, needs_pool=False).held_out}
    task = tasks.build(schema.SequenceClassification(name="sequence_classification"))
    tokenizer = load_tokenizer(schema.Model(source=str(write_tokenizer(tmp_path / "words"))))
    corpus = prepare(settings, task.reader(tokenizer, settings, None)).eval
    assert corpus is not None
    assert asked == {f"Text  {number}" for number in corpus.rows.tolist()}
    assert 30 < len(asked) < 90


def test_the_rendered_text_shows_words_for_labels_and_never_the_label_asked_for():
    prompt = Prompt(
        "f", "{% for shot in shots %}{{ shot.text }}={{ shot.answer }};{% endfor %}{{ text }}=", "label", {"a": "yes"}
    )
    shots = [{"text": "x", "label": "a"}, {"text": "y", "label": "b"}]
    assert list(prompt.render([{"text": "z", "label": "a"}], shots)) == ["x=yes;y=b;z="]
    with pytest.raises(ConfigError, match="'label' is undefined"):
        list(Prompt("f", "{{ text }} {{ label }}", "label", {}).render([{"text": "z", "label": "a"}], []))


@pytest.mark.parametrize(
    ("rows", "words", "told"),
    [
        ([{"text": "x", "topic": "a"}], {}, "columns must be those of one of the formats, got text, topic"),
        (
            [{"text": "x", "label": "a"}, {"text": "y", "label": ["a"]}],
            {},
            "line 2: 'label' must be one class, got [\"a\"]",
        ),
        ([{"text": "x", "label": "a"}, {"label": "a"}], {}, "line 2: must have 'text', got ['label']"),
        ([{"text": "x", "label": "z"}], {"a": "yes", "b": "no"}, 'must be a label of answers.words (a, b), got "z"'),
    ],
)
def test_rows_that_do_not_fit_are_named(data, rows, words, told):
    with pytest.raises(ConfigError) as caught:
        read(data(rows, rows), Prompt("f", TEXT, "label", words), needs_pool=False)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shots", "words", "told"),
    [
        (None, 0, None, "prompt: must be a file that exists"),
        ("{{ text", 0, None, "line 1"),
        ("{{ text }} {{ label }}", 0, None, "must not show a row's label"),
        ("Say a word:", 0, None, "must show a column"),
        ("{{ text }}", 4, None, "shots: must be 0 for a prompt that shows none, got 4"),
        ("{{ text }}", 0, {"a": "x", "b": "x"}, "answers.words: must differ from label to label, got x"),
    ],
)
def test_a_prompt_is_judged_before_the_data_is_read(tmp_path, text, shots, words, told):
    file = tmp_path / "p.jinja"
    if text is not None:
        file.write_text(text)
    (problem,) = check_prompt(str(file), [0, shots], "label", words)
    assert told in problem
