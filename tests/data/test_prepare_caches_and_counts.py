"""Tokenised once: the cache is hit exactly when nothing that matters has changed; every row is accounted for."""

import shutil
import stat
import threading
from pathlib import Path

import filelock
import numpy as np
import pytest

from distft.config import schema
from distft.data import prepare as module
from distft.data import tokenise
from distft.errors import Stopped
from distft.task import chat as chats
from tests.data.chats import chat
from tests.data.reading import prepare

CHATS = [chat(f"Question {n}?", f"Answer {n} " * (n + 1)) for n in range(40)]


def forbid_tokenising(monkeypatch):
    def refuse(*_):
        raise AssertionError("tokenised again")

    monkeypatch.setattr(chats.Template, "documents", refuse)


def test_a_second_run_tokenises_nothing(section, smollm2, jsonl, monkeypatch):
    data = section(jsonl(*CHATS), eval_fraction=0.2)
    first = prepare(data, smollm2)
    forbid_tokenising(monkeypatch)
    again = prepare(data, smollm2)
    assert (again.train.digest, again.eval.digest) == (first.train.digest, first.eval.digest)
    assert again.prompts == first.prompts and again.train.counts == first.train.counts


def test_what_does_not_touch_tokens_keeps_the_cache(section, smollm2, jsonl, tmp_path, monkeypatch):
    file = jsonl(*CHATS)
    folder = prepare(section(file), smollm2).folder
    forbid_tokenising(monkeypatch)
    moved = shutil.copy(file, tmp_path / "renamed.jsonl")
    other = {"packing": False, "global_batch": 64, "micro_batch": 4, "num_workers": 7}
    assert prepare(section(str(moved), **other), smollm2).folder == folder


@pytest.mark.parametrize(
    "changed",
    [
        {"loss_on": "all"},
        {"max_length": 64},
        {"too_long": "drop"},
        {"deduplicate": True},
        {"eval_fraction": 0.5},
        {"format": "chat"},
        {"weight": 2.0},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_each_option_that_touches_tokens_is_in_the_key(section, smollm2, jsonl, changed):
    file = jsonl(*CHATS)
    folder = prepare(section(file), smollm2).folder
    weight = changed.get("weight")
    train = [schema.Source(path=file, weight=weight)] if weight else file
    options = {key: value for key, value in changed.items() if key != "weight"}
    assert prepare(section(train, **options), smollm2).folder != folder


IN_THE_KEY_BESIDES = {"train", "eval", "replay", "replay_share"}  # by content and weight
OF_THE_READER = {"loss_on", "chat_template"}  # its options, and the tokenizer's template
NOT_OF_TOKENS = {"packing", "global_batch", "micro_batch", "num_workers", "cache_dir"}


def test_a_new_option_of_the_data_is_said_to_touch_tokens_or_not():
    """One that does and is not in the key would have an older cache taken for the data asked for."""
    assert set(module.OPTIONS) | IN_THE_KEY_BESIDES | OF_THE_READER | NOT_OF_TOKENS == set(schema.Data.model_fields)


def test_data_tokenizer_template_and_code_are_in_the_key(section, tokenizer, jsonl, tmp_path, monkeypatch):
    folders = [prepare(section(jsonl(*CHATS)), tokenizer).folder]

    def changed() -> None:
        folders.append(prepare(section(str(tmp_path / "my.jsonl")), tokenizer).folder)

    jsonl(*CHATS[:-1])
    changed()
    tokenizer.chat_template += "\n"
    changed()
    tokenizer.add_tokens(["Question"])
    changed()
    assert len(set(folders)) == 4


@pytest.mark.parametrize("edited", ["data/table.py", "task/chat.py", "task/labels.py"])
def test_code_that_reads_rows_is_in_the_key(section, smollm2, jsonl, tmp_path, monkeypatch, edited):
    data = section(jsonl(*CHATS))
    here = prepare(data, smollm2).folder
    package = Path(module.__file__).parents[1]
    copy = Path(shutil.copytree(package, tmp_path / "copy"))
    inside = [(module, "data/prepare.py"), (chats, "task/chat.py")]
    for part, name in inside:
        monkeypatch.setattr(part, "__file__", str(copy / name))
    assert prepare(data, smollm2).folder == here, "the same code in another place"
    with (copy / edited).open("a") as file:
        file.write("# another version\n")
    assert prepare(data, smollm2).folder != here


def test_a_file_that_grew_is_read_anew(section, smollm2, jsonl):
    file = jsonl(*CHATS[:5])
    assert prepare(section(file), smollm2).train.num_documents == 5
    assert prepare(section(jsonl(*CHATS)), smollm2).train.num_documents == 40


def test_a_large_files_digest_is_remembered_until_it_changes(jsonl, tmp_path, monkeypatch):
    file = Path(jsonl(*CHATS))
    monkeypatch.setattr(module, "LARGE_FILE", 100)
    digest = module._content_digest(file, tmp_path)
    assert len(list(tmp_path.glob("*.digest"))) == 1
    assert module._content_digest(file, tmp_path) == digest
    file.write_text(file.read_text().replace("Question 1", "Question X"))
    assert module._content_digest(file, tmp_path) != digest


def test_the_cache_is_its_owners_alone_and_a_killed_runs_rest_is_swept(section, smollm2, jsonl):
    data = section(jsonl(*CHATS))
    folder = prepare(data, smollm2).folder
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    left = folder.rename(folder.with_name(f".{folder.name}.0123abcd.tmp"))  # as a run killed while writing leaves it
    (left / "ids.bin").write_bytes(b"torn")
    assert prepare(data, smollm2).train.num_documents == 40
    assert not left.exists()


def test_who_waits_for_the_cache_polls_and_may_be_stopped(section, smollm2, jsonl):
    data = section(jsonl(*CHATS))
    folder = prepare(data, smollm2).folder
    shutil.rmtree(folder)
    locked, done = threading.Event(), threading.Event()

    def another_rank() -> None:
        with filelock.FileLock(folder.with_suffix(".lock")):
            locked.set()
            done.wait(30)

    other = threading.Thread(target=another_rank)
    other.start()
    locked.wait(30)

    def stop() -> None:
        raise Stopped("asked to")

    with pytest.raises(Stopped):
        prepare(data, smollm2, poll=stop)
    done.set()
    other.join()


def test_several_processes_give_what_one_gives(section, smollm2, jsonl, tmp_path, monkeypatch):
    file = jsonl(*CHATS)
    one = prepare(section(file, num_workers=1), smollm2)
    monkeypatch.setattr(tokenise, "ROWS_A_WORKER", 10)
    monkeypatch.setattr(tokenise, "ROWS_A_CHUNK", 7)
    two = prepare(section(file, num_workers=2, cache_dir=str(tmp_path / "other")), smollm2)
    assert two.folder != one.folder and two.train.digest == one.train.digest


def test_a_stop_while_tokenising_ends_it(section, smollm2, jsonl):
    def stop() -> None:
        raise Stopped("asked to")

    data = section(jsonl(*CHATS))
    with pytest.raises(Stopped):
        prepare(data, smollm2, poll=stop)
    assert not list(Path(data.cache_dir).glob("*.tmp"))


def test_targets_are_the_next_supervised_token(section, smollm2, jsonl):
    train = prepare(section(jsonl(chat("Hi", "Hello", "Bye", "Ciao"))), smollm2).train
    ids, targets = train.document(0)
    assert ids.dtype == targets.dtype == np.int64
    expected = []
    for word in ("Hello", "Ciao"):
        expected += [*smollm2(word)["input_ids"], smollm2.eos_token_id]
    assert targets[targets != -100].tolist() == expected
    assert all(targets[t] == ids[t + 1] for t in np.flatnonzero(targets != -100))
    assert targets[-1] == -100 and train.target_counts.tolist() == [len(expected)] == [train.num_targets]


def test_every_row_is_counted(section, smollm2, jsonl):
    long, silent = chat("Hi", "word " * 400), {"messages": CHATS[0]["messages"][:1]}
    late = chat("word " * 400, "Too late")
    rows = [CHATS[0], CHATS[1], CHATS[0], long, silent, late]
    cut = prepare(section(jsonl(*rows), deduplicate=True, max_length=200), smollm2).train
    assert vars(cut.counts) == {
        "rows": 6,
        "replayed": 0,
        "duplicates": 1,
        "truncated": 1,
        "dropped": {"no supervised token": 1, "no supervised token in the first 200": 1},
    }
    assert cut.num_documents == 3 and cut.lengths.max() == 200
    dropped = prepare(section(jsonl(*rows), max_length=200, too_long="drop"), smollm2).train
    assert dropped.counts.dropped == {"longer than 200 tokens": 2, "no supervised token": 1}
    assert dropped.num_documents == 3


def test_a_split_never_has_one_prompt_on_both_sides(section, smollm2, jsonl):
    rows = [chat(f"Question {n}", answer) for n in range(60) for answer in ("Yes", "No")]
    rows += [chat(f"  QUESTION  {n} ", "Maybe") for n in range(60)]
    prepared = prepare(section(jsonl(*rows), eval_fraction=0.25), smollm2)

    def prompts(corpus) -> set[str]:
        texts = (smollm2.decode(corpus.document(i)[0]) for i in range(corpus.num_documents))
        return {" ".join(text.split("user\n")[1].split("<|im_end|>")[0].lower().split()) for text in texts}

    assert prepared.train.num_documents + prepared.eval.num_documents == len(rows)
    assert not prompts(prepared.train) & prompts(prepared.eval)
    assert 5 <= len(prompts(prepared.eval)) <= 25
    shown = [messages[0]["content"].strip().lower().split()[1] for messages in prepared.prompts]
    assert len(set(shown)) == len(shown) == min(8, len(prompts(prepared.eval)))
    assert all([m["role"] for m in messages] == ["user", "assistant"] for messages in prepared.prompts)


def test_weights_are_passes_an_epoch_over_the_training_side(section, smollm2, jsonl):
    many = [chat(f"Other {n}", "Yes") for n in range(200)]
    sources = [
        schema.Source(path=jsonl(*CHATS, name="a.jsonl"), weight=2),
        schema.Source(path=jsonl(*many, name="b.jsonl"), weight=0.5),
    ]
    train = prepare(section(sources, max_length=4096), smollm2).train
    halves = train.num_documents - 80
    assert 70 <= halves <= 130
    starts = train.starts.tolist()
    assert all(starts.count(start) == 2 for start in starts[:80])
    assert len(set(starts[80:])) == halves


def test_held_out_sources_of_their_own_are_the_eval_side(section, smollm2, jsonl):
    data = section(jsonl(*CHATS, name="a.jsonl"), eval=jsonl(*CHATS[:3], name="b.jsonl"))
    prepared = prepare(data, smollm2)
    assert (prepared.train.num_documents, prepared.eval.num_documents) == (40, 3)


def test_without_held_out_rows_there_is_no_eval_side(section, smollm2, jsonl):
    prepared = prepare(section(jsonl(*CHATS)), smollm2)
    assert prepared.eval is None and prepared.prompts == []
