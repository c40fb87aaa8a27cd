"""`evaluate`, `export` and the viewer take the run's task: its labels, its metrics, its class of transformers."""

import json

import pytest
import small
import torch
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from distft import evaluate, export
from distft.data.__main__ import show
from distft.errors import ConfigError

CASES = {
    "sequence_classification": (small.BERT, small.labelled, AutoModelForSequenceClassification),
    "seq2seq": (small.T5, small.rewritten, AutoModelForSeq2SeqLM),
    "relation_extraction": (small.BERT, small.related, None),
}


@pytest.fixture(scope="module", params=CASES)
def trained(request, commands, words_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    shape, make, auto = CASES[request.param]
    words = small.run_words(request.param, words_folder, folder, shape, make)
    ended = commands.run(*words, "steps=3")
    assert ended.code == 0, ended.output
    return words, folder / "run", auto


def in_a_process(run_module, argv):
    """A command of its own process group: the group must not be joined yet, and is left again."""
    run_module.main(argv)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def test_evaluate_measures_what_the_run_s_last_evaluation_did(trained, capsys):
    _, run, _ = trained
    in_a_process(evaluate, [f"run={run}"])
    result = json.loads((run / "evaluation.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["split"] == "eval"][-1]
    numbers = {name: value for name, value in last.items() if name not in ("step", "split", "time")}
    assert len(numbers) > 1
    for name, value in numbers.items():
        assert result["trained"][name] == pytest.approx(value, rel=1e-5), name


def test_a_merged_export_is_the_trained_model_or_is_refused(trained, capsys):
    _, run, auto = trained
    if auto is None:
        with pytest.raises(ConfigError, match=r"export\.to: must be adapter for task=relation_extraction"):
            export.main([f"run={run}", "export.to=merged"])
        return
    export.main([f"run={run}", "export.to=merged", "export.dtype=float32"])  # compares the file with the model itself
    assert f"{auto.__name__}.from_pretrained" in capsys.readouterr().out
    model = auto.from_pretrained(run / "exports" / "merged")
    if auto is AutoModelForSequenceClassification:
        assert model.config.id2label == {0: "art", 1: "news", 2: "sport"}


def test_an_exported_adapter_is_read_back_as_the_trained_model(trained):
    _, run, _ = trained
    export.main([f"run={run}", "export.to=adapter"])
    assert (run / "exports" / "adapter" / "adapter_model.safetensors").exists()


def test_the_viewer_shows_labels(trained, capsys):
    from rich.console import Console

    from distft.config.compose import load

    words, _, auto = trained
    config = load(words, program="tests", here=False)
    show(config, 2, Console(width=200, force_terminal=False))
    shown = capsys.readouterr().out
    assert "targets" in shown and ("labels" in shown) == (auto is not AutoModelForSeq2SeqLM)
