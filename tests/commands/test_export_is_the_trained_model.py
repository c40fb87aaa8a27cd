"""What is exported has the loss that training ended with, by plain transformers and PEFT; what has not is not there."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import command_runs
import pytest
from command_runs import RUNS, loss_of_folder, reply_of_folder
from safetensors.numpy import load_file

from distft.tracking import metrics

EXPORT = "distft.export"


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in metrics.read(run / metrics.FILE) if row["split"] == "eval"]


@pytest.mark.parametrize("name", [name for name in RUNS if name != "bf16"])
def test_merged_folder_has_the_loss_that_training_ended_with(name, trained, command, child, tmp_path):
    run = trained(name)
    assert losses(run)[0] - losses(run)[-1] > 0.05, "the run must have learnt something for this to mean anything"
    done = command(EXPORT, f"run={run}", "export.to=merged", "export.dtype=float32", f"export.path={tmp_path / 'out'}")
    assert done.code == 0, done.err
    assert child(loss_of_folder, run, tmp_path / "out") == pytest.approx(losses(run)[-1], abs=2e-5)


@pytest.mark.parametrize("name", ["lora", "dora", "pissa", "olora", "nf4", "head", "tied_head", "tied_both"])
def test_adapter_folder_on_the_plain_base_has_the_loss_that_training_ended_with(
    name, trained, command, child, base, tmp_path
):
    run = trained(name)
    done = command(EXPORT, f"run={run}", "export.to=adapter", f"export.path={tmp_path / 'out'}")
    assert done.code == 0, done.err
    loss = child(loss_of_folder, run, tmp_path / "out", base, name == "nf4")
    assert loss == pytest.approx(losses(run)[-1], abs=2e-5)


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("tied")])
def test_what_is_merged_into_a_tied_layer_is_not_merged_into_the_other(name, trained, command, base, tmp_path):
    done = command(EXPORT, f"run={trained(name)}", "export.to=merged", f"export.path={tmp_path / 'out'}")
    assert done.code == 0, done.err
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "out"))
    embeddings, adapter = before["model.embed_tokens.weight"], trained(name) / "adapter"
    changed = {key.split(".")[-3] for key in load_file(adapter / "adapter_model.safetensors") if "lora_" in key}
    changed |= {"embed_tokens"} if name in ("tied_embeddings", "tied_both") else set()
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        assert ((after[key] != embeddings).any()) == (key.split(".")[-2] in changed), key
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.machine
def test_a_bfloat16_model_is_rounded_once_and_stays_near(trained, command, child):
    run = trained("bf16")
    done = command(EXPORT, f"run={run}", "export.to=merged")
    assert done.code == 0, done.err
    folder = run / "exports" / "merged"
    assert "in bfloat16: logits differ by" in done.out
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert child(loss_of_folder, run, folder) == pytest.approx(losses(run)[-1], abs=0.02)


def test_a_merged_folder_is_ready_to_chat(trained, command, child, base, tmp_path):
    assert command(EXPORT, f"run={trained('lora')}", "export.to=merged", f"export.path={tmp_path / 'out'}").code == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert config["use_cache"] is True and config["architectures"] == ["LlamaForCausalLM"]
    assert generation["max_length"] == 99, "the base's own generation config comes along"
    assert "<|im_start|>user" in child(reply_of_folder, tmp_path / "out")
    assert not [file for file in (tmp_path / "out").iterdir() if file.name.startswith("adapter")]


@pytest.mark.machine
@pytest.mark.parametrize("fault", [command_runs.wrong_merge, command_runs.wrong_file], ids=["merge", "file"])
@pytest.mark.parametrize("name", ["lora", "bf16"])
def test_a_wrong_export_ends_in_1_and_leaves_nothing(name, fault, trained, command, tmp_path):
    done = command(
        EXPORT, f"run={trained(name)}", "export.to=merged", f"export.path={tmp_path / 'out'}", sabotage=fault
    )
    assert done.code == 1
    assert "must agree with the trained model" in done.err
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_step_is_exported_by_its_number(trained, command, child, words):
    run = child(
        command_runs.train, [*words, "name=steps", "checkpoint.every=1", "evaluation.every=1", "checkpoint.keep=3"]
    )
    done = command(EXPORT, f"run={run}", "export.to=merged", "export.checkpoint=1")
    assert done.code == 0, done.err
    assert child(loss_of_folder, run, run / "exports" / "merged") == pytest.approx(losses(run)[1], abs=2e-5)


def test_a_run_that_has_only_a_checkpoint_is_exported_from_it(trained, command, tmp_path):
    run = shutil.copytree(trained("lora"), tmp_path / "lora")
    shutil.rmtree(run / "adapter")
    done = command(EXPORT, f"run={run}", "export.to=adapter")
    assert done.code == 0, done.err
    assert "step-00000003" in done.out


def refused(command: Callable[..., command_runs.Done], *argv: str) -> str:
    done = command(EXPORT, *argv)
    assert done.code == 2, (done.code, done.err)
    return done.err.strip()


def test_bad_input_is_named_and_nothing_is_written(trained, command, tmp_path):
    run, full = trained("lora"), trained("full")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").write_text("kept")
    to = "export.to=merged"
    assert "run: must be a folder that exists" in refused(command, f"run={run}x", to)
    assert "did you mean export.to=merged?" in refused(command, f"run={run}", "export.to=merge")
    assert "export.to: must be set" in refused(command, f"run={run}")
    assert "export.to: must be merged" in refused(command, f"run={full}", "export.to=adapter")
    assert "must be new or an empty folder" in refused(command, f"run={run}", to, f"export.path={tmp_path / 'used'}")
    assert "steps there: 3" in refused(
        command, f"run={run}", to, "export.checkpoint=7", f"export.path={tmp_path / 'o'}"
    )
    assert "model.quantization: must be what the run trained with" in refused(
        command, f"run={run}", to, "model.quantization=nf4", f"export.path={tmp_path / 'o'}"
    )
    assert "use export.to=merged" in refused(command, f"run={trained('loftq')}", "export.to=adapter")
    assert (tmp_path / "used" / "mine").read_text() == "kept"
    assert [entry.name for entry in tmp_path.iterdir()] == ["used"]


def test_a_run_without_a_checkpoint_is_told_to_train(trained, command, tmp_path):
    run = shutil.copytree(trained("lora"), tmp_path / "lora")
    shutil.rmtree(run / "adapter")
    shutil.rmtree(run / "checkpoints")
    assert "must have a trained adapter or a checkpoint" in refused(command, f"run={run}", "export.to=merged")
    assert not (run / "exports").exists()


def test_another_base_under_the_same_name_is_refused(trained, command, tmp_path):
    run = shutil.copytree(trained("lora"), tmp_path / "lora")
    environment = json.loads((run / "environment.json").read_text())
    environment["base"]["digest"] = "0" * 64
    (run / "environment.json").write_text(json.dumps(environment))
    assert "content must be what the run was trained on" in refused(command, f"run={run}", "export.to=merged")
    assert not list(run.rglob("*.partial"))


def test_without_its_data_a_run_is_checked_on_a_sentence(trained, command, tmp_path):
    done = command(
        EXPORT, f"run={trained('lora')}", "export.to=merged", "data.train=gone.jsonl", f"export.path={tmp_path / 'out'}"
    )
    assert done.code == 0, done.err
    assert "checked on a sentence instead" in done.err and "gone.jsonl" in done.err
