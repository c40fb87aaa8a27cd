"""Early stopping: the best checkpoint outlives newer ones, and `adapter/` is made of it, interrupted or not."""

import hashlib
import json

import pytest

from tests.resume import hooks, runs

LOSSES = [5.0, 4.0, 3.0, 3.5, 3.6, 3.7, 1.0, 1.0, 1.0]
WORDS = ["steps=8", "evaluation.every=1", "evaluation.patience=3", "checkpoint.every=1"]


def test_patience_ends_the_run_with_the_best_adapter(commands, tiny, tmp_path):
    run = tmp_path / "run"
    ended = commands.run(*tiny(tmp_path, *WORDS), hook=(hooks.held_out_losses, LOSSES))
    assert ended.code == 0, ended.output
    assert [(row["step"], row["loss"]) for row in runs.rows(run, "eval")] == list(enumerate(LOSSES))[:6]
    assert runs.steps(run) == [2, 4, 5]
    best = (run / "checkpoints" / "step-00000002" / "adapter_model.safetensors").read_bytes()
    assert runs.adapter(run) == hashlib.sha256(best).hexdigest()
    assert "(step 2)" in ended.output


@pytest.mark.parametrize("every", [1, 100])
def test_a_kill_in_an_evaluation_changes_nothing_of_it(commands, tiny, tmp_path, every):
    whole, cut = tmp_path / "whole" / "run", tmp_path / "cut" / "run"
    words = [*WORDS[:-1], f"checkpoint.every={every}"]
    assert commands.run(*tiny(whole.parent, *words), hook=(hooks.held_out_losses, LOSSES)).code == 0
    for step in (2, 4, 5):
        killed = commands.run(*tiny(cut.parent, *words), hook=(hooks.held_out_losses, LOSSES, step))
        assert killed.codes == [-9], killed.output
    last = commands.run(*tiny(cut.parent, *words), hook=(hooks.held_out_losses, LOSSES))
    assert last.code == 0, last.output
    assert runs.rows(cut) == runs.rows(whole)
    assert runs.adapter(cut) == runs.adapter(whole)
    assert runs.steps(cut) == runs.steps(whole)


def test_a_best_checkpoint_that_was_never_saved_does_not_fail_the_run(commands, tiny, tmp_path):
    ended = commands.run(*tiny(tmp_path, *WORDS), hook=(best_is_not_saved,))
    assert ended.code == 0, ended.output
    assert "the best checkpoint" in ended.output and "adapter/ is made of the last one" in ended.output
    last = max(runs.steps(tmp_path / "run"))
    saved = (tmp_path / "run" / "checkpoints" / f"step-{last:08d}" / "adapter_model.safetensors").read_bytes()
    assert runs.adapter(tmp_path / "run") == hashlib.sha256(saved).hexdigest()


def best_is_not_saved(global_rank: int) -> None:
    hooks.held_out_losses(global_rank, LOSSES)
    hooks.disk_full(global_rank, [2, 3])  # the second try of step 2 is the third save


def test_the_evaluation_s_counts_are_in_the_state(commands, tiny, tmp_path):
    assert (
        commands.run(*tiny(tmp_path, *WORDS[:-1], "checkpoint.every=100"), hook=(hooks.held_out_losses, LOSSES)).code
        == 0
    )
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-00000005" / "state.json").read_text())
    expected = {"step": 5, "best_step": 2, "best": 3.0, "best_of": "loss", "without_progress": 3, "evaluated_at": 5}
    assert {key: state[key] for key in expected} == expected
