"""Bad data gets one sentence a fault: the key, the place, what was found, the way out."""

import json
from pathlib import Path

import pytest

from distft.errors import ConfigError
from distft.runtime.location import choose, locate
from tests.data.chats import chat
from tests.data.reading import prepare

GOOD = chat("Hi", "Hello")


@pytest.fixture
def problems(section, smollm2):
    def collect(train, **keys) -> list[str]:
        with pytest.raises(ConfigError) as raised:
            prepare(section(train, **keys), smollm2)
        assert not list(Path(section(train).cache_dir).glob("*.tmp")), "nothing half-written stays"
        return raised.value.problems

    return collect


def test_a_broken_line_is_named_by_file_and_number(problems, jsonl):
    file = jsonl(GOOD, "", '{"messages": [', GOOD)
    (problem,) = problems(file)
    assert problem.startswith(f"data.train: {file}, line 3: must be a JSON object")


def test_a_row_not_of_its_format_is_named_by_file_and_number(problems, jsonl):
    file = jsonl(GOOD, {"messages": "Hi"}, "[1]")
    first, second = problems(file)
    assert f"{file}, line 2: 'messages' must be a list of messages" in first
    assert f"{file}, line 3: must be a JSON object, got list" in second


def test_many_broken_lines_are_five_and_a_number(problems, jsonl):
    found = problems(jsonl(GOOD, *["{"] * 12))
    assert len(found) == 6 and "7 more such rows" in found[-1]


def test_bytes_that_are_not_utf8_are_named(problems, tmp_path):
    (tmp_path / "latin.jsonl").write_bytes(json.dumps(GOOD).encode() + b'\n{"messages": "\xe9"}\n')
    (problem,) = problems(str(tmp_path / "latin.jsonl"))
    assert "line 2: must be a JSON object: 'utf-8' codec can't decode" in problem


def test_a_missing_file_is_named_with_its_neighbours(problems, jsonl, tmp_path):
    jsonl(GOOD, name="train.jsonl")
    (problem,) = problems(str(tmp_path / "trian.jsonl"))
    assert problem.startswith("data.train: path must exist") and "which holds train.jsonl" in problem


def test_a_missing_folder_is_named_rather_than_the_file_in_it(problems, tmp_path):
    (problem,) = problems(str(tmp_path / "nowhere" / "deep" / "train.jsonl"))
    assert "'nowhere' is not in" in problem


def test_missing_columns_are_told_with_those_found_and_those_wanted(problems, jsonl):
    (problem,) = problems(jsonl({"question": "Hi", "answer": "Hello"}))
    assert "got question, answer" in problem
    for format in ("chat wants messages", "prompt_completion wants prompt, completion", "text wants text"):
        assert format in problem


def test_columns_that_fit_another_format_than_the_one_asked_for_are_told(problems, jsonl):
    (problem,) = problems(jsonl(GOOD), format="text")
    assert "columns must be those of data.format 'text', got messages" in problem


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", ""), ("a.jsonl", "\n \n"), ("a.json", "[]")])
def test_an_empty_dataset_is_refused(problems, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    (problem,) = problems(str(tmp_path / name))
    assert problem.startswith("data.train: dataset must have rows, got an empty")


def test_a_folder_without_data_files_is_refused(problems, tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "notes.md").write_text("")
    (problem,) = problems(str(folder))
    assert "folder must hold .jsonl" in problem and "notes.md" in problem


def test_all_rows_filtered_is_refused_with_reasons_and_keys(problems, jsonl):
    (problem,) = problems(jsonl(GOOD, GOOD), max_length=4, too_long="drop")
    assert "got 0 of 2 (2 rows: longer than 4 tokens)" in problem and "data.max_length (4)" in problem


def test_no_supervised_token_anywhere_is_refused(problems, jsonl):
    (problem,) = problems(jsonl({"messages": GOOD["messages"][:1]}))
    assert "got 0 of 1 (1 rows: no supervised token)" in problem
    assert "data.loss_on (assistant)" in problem and "chat template" in problem


def test_a_split_without_held_out_rows_is_refused(problems, jsonl):
    (problem,) = problems(jsonl(GOOD), eval_fraction=1e-9)
    assert problem.startswith("data.eval_fraction: must hold out at least one row")


def test_faults_of_all_sources_come_at_once(problems, jsonl, tmp_path):
    wrong = jsonl({"question": "Hi"}, name="wrong.jsonl")
    found = problems([wrong, str(tmp_path / "gone.jsonl")], eval=str(tmp_path / "gone.csv"))
    assert [problem.split(":")[0] for problem in found] == ["data.train[1]", "data.eval", "data.train[0]"]


def test_a_damaged_file_of_each_kind_is_named(problems, tmp_path):
    for name, content in [
        ("a.json", '[{"messages": ['),
        ("a.yml", "conversations: [[}"),
        ("b.yml", "questions: []"),
        ("a.csv", 'prompt,completion\n"a"b,c\n1,2,3\n'),
        ("a.parquet", "PAR1 not"),
    ]:
        (tmp_path / name).write_text(content)
        (problem,) = problems(str(tmp_path / name))
        assert problem.startswith("data.train: file must be well-formed") and name in problem


def test_a_cache_folder_that_cannot_be_made_is_refused(problems, jsonl, tmp_path):
    (tmp_path / "file").write_text("")
    (problem,) = problems(jsonl(GOOD), cache_dir=str(tmp_path / "file" / "cache"))
    assert problem.startswith("data.cache_dir: folder must be writable")


def test_a_hub_id_that_cannot_be_read_is_refused(problems, monkeypatch):
    import datasets

    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach 'nobody/nothing' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    (problem,) = problems("nobody/nothing")
    assert "must be a local path or a dataset on the hub" in problem and "Couldn't reach" in problem


def test_chats_without_a_chat_template_are_refused(section, tokenizer, jsonl):
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match=r"data\.chat_template: must be a Jinja file where the tokenizer has no"):
        prepare(section(jsonl(GOOD)), tokenizer)


def test_a_link_keeps_its_name(tmp_path):
    (tmp_path / "blob").write_text("")
    (tmp_path / "model.gguf").symlink_to(tmp_path / "blob")
    assert locate(str(tmp_path / "model.gguf")) == tmp_path / "model.gguf"


def test_a_package_that_is_not_installed_is_refused():
    with pytest.raises(ConfigError, match=r"package 'no_such_package' of .* must be installed; pip install"):
        locate("package://no_such_package/data", "data.train")
    with pytest.raises(ConfigError, match=r"must hold 'data/englisch'; 'englisch' is not in .* holds english"):
        locate("package://chatterbot_corpus/data/englisch", "data.train")


def test_the_first_source_that_is_there_is_chosen(tmp_path):
    there = "package://chatterbot_corpus/data/english/ai.yml"
    assert choose(["package://no_such_package/x", str(tmp_path / "x.gguf"), there, "owner/name"]) == there
    assert choose(["./gone", "owner/name"]) == "owner/name"
    with pytest.raises(ConfigError) as raised:
        choose(["./gone", "/also/gone"], "model.source")
    assert len(raised.value.problems) == 2
