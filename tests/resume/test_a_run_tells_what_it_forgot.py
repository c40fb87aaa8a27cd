"""evaluation.earlier: datasets learnt before are measured before and after, and the difference is told."""

import json

import small
import yaml

from tests.resume.tiny_run import commands, tiny, write_dialogues

__all__ = ["commands", "tiny"]


def evaluations(run) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == "eval"]


def test_each_evaluation_measures_the_earlier_data_as_if_it_were_the_held_out_data(commands, tiny, tmp_path):
    old = write_dialogues(tmp_path / "old.jsonl", 7, 9)
    ended = commands.run(*tiny(tmp_path, f"evaluation.earlier={{old: {old}}}", "evaluation.every=3"))
    assert ended.code == 0, ended.output
    rows = evaluations(tmp_path / "run")
    assert [row["step"] for row in rows] == [0, 3, 6]
    told = json.loads((tmp_path / "run" / "forgetting.json").read_text())
    before, after = rows[0]["old/loss"], rows[-1]["old/loss"]
    assert told["old"].keys() == {"loss", "perplexity"}
    assert told["old"]["loss"] == {"before": before, "after": after, "change": after - before}
    assert f"loss {before:.4f} -> {after:.4f}" in ended.output
    assert "evaluation.earlier" not in (tmp_path / "run" / "forgetting.json").read_text()
    # The reference: the same run with the earlier data as its held-out data.
    assert commands.run(*tiny(tmp_path / "b", f"data.eval={old}", "evaluation.every=3")).code == 0
    reference = [row["loss"] for row in evaluations(tmp_path / "b" / "run")]
    assert [row["old/loss"] for row in rows] == reference
    assert before != after


def test_labels_of_earlier_data_are_those_of_the_run(commands, tmp_path):
    tokenizer = small.write_tokenizer(tmp_path / "words")
    old = small.write_rows(tmp_path / "old.jsonl", small.labelled, 9, seed=5)
    words = small.run_words("sequence_classification", tokenizer, tmp_path / "runs", small.LLAMA, small.labelled)
    ended = commands.run(*words, f"evaluation.earlier={{old: {old}}}")
    assert ended.code == 0, ended.output
    rows = evaluations(tmp_path / "runs" / "run")
    assert {"old/loss", "old/accuracy", "old/macro_f1", "old/micro_f1"} <= rows[0].keys()
    assert set(json.loads((tmp_path / "runs" / "run" / "forgetting.json").read_text())["old"]) >= {"loss", "accuracy"}


def test_a_run_may_ask_for_earlier_data_when_it_goes_on_but_not_replay_it(commands, tiny, tmp_path):
    old = write_dialogues(tmp_path / "old.jsonl", 7, 9)
    assert commands.run(*tiny(tmp_path, "steps=2")).code == 0
    assert commands.run(*tiny(tmp_path, "steps=4", f"evaluation.earlier={{old: {old}}}")).code == 0
    assert "old/loss" in evaluations(tmp_path / "run")[-1]
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["evaluation"]["earlier"] == {"old": str(old)}
    refused = commands.run(*tiny(tmp_path, "steps=6", f"data.replay={old}"))
    assert refused.code == 2 and "data.replay: must stay what the run began with, null" in refused.output


def test_bad_input_is_named(commands, tiny, tmp_path):
    for words, told in {
        ("evaluation.earlier={old: ./gone.jsonl}",): "evaluation.earlier.old: path must exist",
        ("evaluation.earlier={a/b: ./x}",): "names must be letters",
        ("data.replay=./gone.jsonl",): "data.replay: path must exist",
        ("data.replay_share=0.3",): "data.replay_share: belongs to data.replay",
        ("data.replay=tests", "data.replay_share=0"): "data.replay_share: must be > 0",
    }.items():
        ended = commands.run(*tiny(tmp_path / "runs", *words))
        assert ended.code == 2 and told in ended.output, (words, ended.output)
        assert not (tmp_path / "runs").exists()
