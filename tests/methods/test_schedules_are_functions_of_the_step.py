"""Gradual unfreezing and AdaLoRA's budget: what they do at each step, and that a stop between changes nothing."""

from typing import Any

import method_cases as cases
import pytest
import torch
from engine_cases import accumulate

from distft.model.adapter import saved

ADALORA = {
    "method": "adalora",
    "targets": ["q_proj", "down_proj"],
    "options": {"init_r": 6, "target_r": 2, "tinit": 1, "tfinal": 2},
}


def moving(gradients):
    return {name for name, gradient in gradients.items() if gradient.any()}


@pytest.mark.parametrize("engine", ["single", "fsdp", "zero3"])
def test_blocks_open_from_the_top(alone, two_ranks, tmp_path, engine):
    config = cases.config({"method": "full", "unfreeze_every": 2}, engine, steps=4, optim={"name": "sgd"})
    steps = (
        cases.gradients(alone, config, tmp_path, 3)
        if engine == "single"
        else two_ranks.run(cases.gradients, config, tmp_path, 3)[0]
    )
    names = set(steps[0])
    top = {name for name in names if not name.startswith("model.layers.0.")}  # the embeddings are tied to the head
    assert moving(steps[0]) == moving(steps[1]) == top
    assert moving(steps[2]) == names


def test_what_opens_late_is_not_taken_for_what_never_trains(alone, tmp_path):
    config = cases.config({"method": "layers", "count": 2, "unfreeze_every": 2}, "single", steps=4)
    course = cases.Course(alone, config, tmp_path)
    assert course.schedule.late == {name for name in saved.trainable(course.task.model) if ".layers.0." in name}
    start = course.trained()
    course.step(0)
    still = {name for name, tensor in course.trained().items() if torch.equal(tensor, start[name])}
    assert still == course.schedule.late


def test_adaloras_budget_is_that_of_pefts_own_loop(alone, tmp_path):
    config = cases.config(ADALORA, "single", steps=7)
    ours = cases.trained_after(alone, config, tmp_path, None)
    theirs = cases.Course(alone, config, tmp_path)
    tuner: Any = theirs.task.model.base_model
    parameters = list(saved.trainable(theirs.task.model).values())
    for number in range(7):
        accumulate(theirs.engine, theirs.loader, number)
        optimizer = theirs.engine.optimizer
        for group in optimizer.param_groups:
            group["lr"] = cases.LR
        torch.nn.utils.clip_grad_norm_(parameters, config.optim.max_grad_norm)
        optimizer.step()
        tuner.update_and_allocate(number + 1)
        optimizer.zero_grad()
    values = {name: p.detach() for name, p in theirs.task.model.named_parameters() if p.requires_grad}
    values = {name.removesuffix(".default"): tensor for name, tensor in values.items()}
    assert ours.keys() == values.keys()
    for name, tensor in values.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-7)
    kept = sum(int(tensor.count_nonzero()) for name, tensor in ours.items() if name.endswith("lora_E"))
    assert kept <= 2 * 4, "target_r a matrix, over four matrices"


@pytest.mark.parametrize("engine", ["single", "fsdp", "zero3"])
@pytest.mark.parametrize("stop_at", [3, 6])
def test_a_stop_amid_the_budget_changes_nothing(alone, two_ranks, tmp_path, engine, stop_at):
    config = cases.config(ADALORA, engine, steps=7)
    ends = []
    for stop in (None, stop_at):
        folder = tmp_path / str(stop)
        ends.append(
            cases.trained_after(alone, config, folder, stop)
            if engine == "single"
            else two_ranks.run(cases.trained_after, config, folder, stop)[0]
        )
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
