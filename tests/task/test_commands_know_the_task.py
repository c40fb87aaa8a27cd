"""`evaluate`, `export` and the viewer take the run's task: its labels, its metrics, its class of transformers."""

import json

import command_runs
import pytest
import small
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from distft.data.command import show

CASES = {
    "sequence_classification": (small.BERT, small.labelled, AutoModelForSequenceClassification),
    "seq2seq": (small.T5, small.rewritten, AutoModelForSeq2SeqLM),
    "relation_extraction": (small.BERT, small.related, None),
}


@pytest.fixture(scope="module", params=CASES)
def trained(request, child, words_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    shape, make, auto = CASES[request.param]
    words = small.run_words(request.param, words_folder, folder, shape, make)
    child(command_runs.train, [*words, "steps=3"])
    return words, folder / "run", auto


def test_evaluate_measures_what_the_run_s_last_evaluation_did(trained, command):
    _, run, _ = trained
    done = command("distft.evaluate", f"run={run}")
    assert done.code == 0, done.err
    result = json.loads((run / "evaluation.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["split"] == "eval"][-1]
    numbers = {name: value for name, value in last.items() if name not in ("step", "split", "time")}
    assert len(numbers) > 1
    for name, value in numbers.items():
        assert result["trained"][name] == pytest.approx(value, rel=1e-5), name


def test_a_merged_export_is_the_trained_model_or_is_refused(trained, command):
    _, run, auto = trained
    done = command("distft.export", f"run={run}", "export.to=merged", "export.dtype=float32")
    if auto is None:
        assert done.code == 2 and "class of transformers loads, got relation_extraction" in done.err
        assert not (run / "exports" / "merged").exists()
        return
    assert done.code == 0, done.err  # it compares the file with the model itself
    assert f"{auto.__name__}.from_pretrained" in done.out
    model = auto.from_pretrained(run / "exports" / "merged")
    if auto is AutoModelForSequenceClassification:
        assert model.config.id2label == {0: "art", 1: "news", 2: "sport"}


def test_an_exported_adapter_is_read_back_as_the_trained_model(trained, command):
    _, run, auto = trained
    done = command("distft.export", f"run={run}", "export.to=adapter")
    assert done.code == (2 if auto is None else 0), done.err
    assert (auto is None) != (run / "exports" / "adapter" / "adapter_model.safetensors").exists()


def test_the_viewer_shows_labels(trained, capsys):
    from rich.console import Console

    from distft.config.reading.compose import load

    words, _, auto = trained
    config = load(words, program="tests", here=False)
    show(config, 2, Console(width=200, force_terminal=False))
    shown = capsys.readouterr().out
    assert "targets" in shown and ("labels" in shown) == (auto is not AutoModelForSeq2SeqLM)
