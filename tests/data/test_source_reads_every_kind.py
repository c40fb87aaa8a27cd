"""The same rows from every kind of file are the same documents."""

import json

import pytest
from datasets import Dataset

from distft.config import schema
from distft.data.table import READERS
from tests.data.chats import chat
from tests.data.reading import prepare

ROWS = [{"prompt": f"{n} times two is", "completion": f" {2 * n}"} for n in range(5)]


def documents(prepared) -> list[list[int]]:
    return [prepared.train.document(i)[0].tolist() for i in range(prepared.train.num_documents)]


@pytest.mark.parametrize("kind", ["json", "lines.json", "parquet", "csv", "folder"])
def test_kinds_agree(kind, section, smollm2, jsonl, tmp_path):
    path = tmp_path / f"rows.{kind}"
    if kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind == "lines.json":
        path.write_text("\ufeff" + "\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    elif kind == "parquet":
        Dataset.from_list([row | {"other": 1.5} for row in ROWS]).to_parquet(path)
    elif kind == "csv":
        path.write_text("prompt,completion\n" + "".join(f"{r['prompt']},{r['completion']}\n" for r in ROWS))
    else:
        path.mkdir()
        (path / "README.md").write_text("not data")
        (path / "a.jsonl").write_text("\n".join(map(json.dumps, ROWS[:2])))
        (path / "b.jsonl").write_text("\n".join(map(json.dumps, ROWS[2:])) + "\n")
    reference = documents(prepare(section(jsonl(*ROWS)), smollm2))
    assert len(reference) == 5
    assert documents(prepare(section(str(path)), smollm2)) == reference


def test_hub_rows_are_read_by_split_and_subset(section, smollm2, monkeypatch, jsonl):
    import datasets

    asked = []

    def load(path, subset, split):
        asked.append((path, subset, split))
        return Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = schema.Source(path="owner/name", subset="main", split="train[:5]")
    prepared = prepare(section([source]), smollm2)
    assert asked[0] == ("owner/name", "main", "train[:5]")
    assert documents(prepared) == documents(prepare(section(jsonl(*ROWS)), smollm2))


def test_a_corpus_of_utterances_alternates_and_ends_with_a_reply(section, smollm2, tmp_path):
    (tmp_path / "talk.yml").write_text("categories: [x]\nconversations:\n- [Hi, Yes, Well?]\n- [1, 2.50, A, Bye]\n")
    prepared = prepare(section(str(tmp_path / "talk.yml")), smollm2)
    texts = [smollm2.decode(ids).split("Face<|im_end|>\n")[1] for ids in documents(prepared)]
    say = "<|im_start|>{}\n{}<|im_end|>\n".format
    assert texts == [
        say("user", "Hi") + say("assistant", "Yes"),
        say("user", "1") + say("assistant", "2.50") + say("user", "A") + say("assistant", "Bye"),
    ]


def test_a_corpus_gives_pairs_of_a_reply_and_another_conversation_s(tmp_path):
    said = "[[Hi, Yes], [How, 'Yes', Why, No], [Bye, Ciao], [Alone]]"
    (tmp_path / "talk.yml").write_text(f"conversations: {said}\n")
    rows = READERS[".yml"](tmp_path / "talk.yml").rows
    found = [[m["content"] for m in (*row["prompt"], *row["chosen"], *row["rejected"])] for row in rows[:3]]
    assert found == [["Hi", "Yes", "No"], ["How", "Yes", "Why", "No", "Ciao"], ["Bye", "Ciao", "Yes"]]
    assert "prompt" not in rows[3]
    (tmp_path / "one.yml").write_text("conversations: [[How, 'Yes', Why, No]]\n")
    (row,) = READERS[".yml"](tmp_path / "one.yml").rows
    assert [message["content"] for message in row["rejected"]] == ["Yes"]


def test_rows_with_unlike_fields_stand_in_one_file(section, smollm2, jsonl):
    odd = chat("a", "b") | {"meta": {"x": [1, "two"]}}
    other = chat("c", "d") | {"meta": 3}
    assert prepare(section(jsonl(odd, other)), smollm2).train.num_documents == 2


def test_sources_of_different_formats_mix(section, smollm2, jsonl):
    files = [
        jsonl(chat("Hi", "Yo"), name="a.jsonl"),
        jsonl(*ROWS, name="b.jsonl"),
        jsonl({"text": "Once upon"}, name="c.jsonl"),
    ]
    assert prepare(section(files), smollm2).train.num_documents == 7
