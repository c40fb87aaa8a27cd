"""Each regulariser against its formula or PEFT's own code; off, in evaluation, and alike on every engine."""

import math
from typing import Any

import method_cases as cases
import pytest
import torch
import torch.nn.functional as F
from engine_cases import accumulate

from distft.config import schema
from distft.model.adapter import saved
from distft.task import causal_lm

LORA = {"method": "lora", "r": 4, "targets": ["q_proj", "down_proj"]}
ADALORA = {"method": "adalora", "targets": ["q_proj", "down_proj"], "options": {"init_r": 6, "target_r": 3, "tinit": 1}}


def course(alone: Any, folder, adapter=LORA, engine="single", **regularisation):
    config = cases.config(adapter, engine, regularisation=regularisation, data={"micro_batch": 1, "global_batch": 2})
    return cases.Course(alone, config, folder)


def move(course):
    """Takes what trains away from a start at which half of its gradients are zero."""
    with torch.no_grad():
        for number, (_, parameter) in enumerate(sorted(saved.trainable(course.task.model).items())):
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))


def engine_gradients(course):
    accumulate(course.engine, course.loader, 0)
    return {name: gradient.clone() for name, gradient in course.engine.gradients()}


def documents(course):
    """Input ids and targets of the step's documents, each alone."""
    return [
        tuple(torch.from_numpy(part) for part in course.loader.corpus.document(number))
        for row in course.loader.rows(0)
        for number in course.loader._rows[row]
    ]


def losses(course, targets, **inputs):
    """The sum of token losses of one document, through the model's own logits, in training mode."""
    course.task.base.set_attn_implementation("sdpa")
    logits = course.task.base(**inputs).logits[0]
    return F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")


def assert_same(ours, theirs, tolerance=1e-4):
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=0, atol=tolerance * gradient.abs().max().item() + 1e-9)


def test_neftune_noise_is_uniform_within_alpha_over_root_of_length_times_width(alone, tmp_path):
    noisy = course(alone, tmp_path, neftune_alpha=5.0)
    batch = next(iter(noisy.loader.micro_batches(0)))
    embeddings = noisy.task.base.get_input_embeddings()
    noisy.task.settle(batch.input_ids.device)
    seen = []
    embeddings.register_forward_hook(lambda module, args, out: seen.append(out.detach()))
    for training in (True, True, False):
        noisy.task.train(training)
        noisy.task(batch)
    assert torch.equal(seen[0], seen[1]), "the batch's seed decides"
    clean = F.embedding(batch.input_ids, embeddings.weight)
    assert torch.equal(seen[2], clean)
    length = int(batch.document_ends[1])
    noise, bound = (seen[0] - clean)[0, :length], 5 / math.sqrt(length * 32)
    assert 0.8 * bound < noise.abs().max() <= bound * (1 + 1e-5)
    assert noise.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_label_smoothing_is_that_of_cross_entropy_in_training_alone(alone, tmp_path):
    smooth = course(alone, tmp_path, label_smoothing=0.2)
    batch = next(iter(smooth.loader.micro_batches(0)))
    hidden = smooth.task.encode(batch).flatten(0, 1)
    logits = smooth.task.base.lm_head(hidden)
    for training, smoothing in ((True, 0.2), (False, 0.0)):
        expected = F.cross_entropy(logits, batch.targets.flatten(), reduction="sum", label_smoothing=smoothing)
        smooth.task.train(training)
        torch.testing.assert_close(smooth.task.loss(batch), expected, rtol=1e-5, atol=1e-5)


def test_fgm_is_the_mean_of_both_passes_and_its_step_has_length_epsilon(alone, tmp_path):
    attacked = course(alone, tmp_path, fgm_epsilon=0.5)
    move(attacked)
    ours = engine_gradients(attacked)
    reference = course(alone, tmp_path)
    move(reference)
    reference.task.train()
    total, embeddings = 0, reference.task.base.get_input_embeddings()
    for ids, targets in documents(reference):
        embedded = embeddings(ids[None]).detach().requires_grad_()
        loss = losses(reference, targets, inputs_embeds=embedded)
        (by_embedding,) = torch.autograd.grad(loss, embedded, retain_graph=True)
        step = 0.5 * by_embedding / by_embedding.norm()
        total = total + (loss + losses(reference, targets, inputs_embeds=embedded.detach() + step)) / 2
    (total / reference.loader.target_tokens(0)).backward()
    assert_same(ours, {name: p.grad for name, p in saved.trainable(reference.task.model).items()})
    plain = engine_gradients(course(alone, tmp_path))
    assert any(not torch.allclose(ours[name], plain[name], rtol=1e-2) for name in ours)


def test_r_drop_compares_two_masks_and_without_dropout_is_the_plain_loss(alone, tmp_path):
    twice, once = course(alone, tmp_path, r_drop=1.0), course(alone, tmp_path)
    for each in (twice, once):
        move(each)
    assert_same(engine_gradients(twice), engine_gradients(once))
    dropping = course(alone, tmp_path, adapter={**LORA, "dropout": 0.5}, r_drop=1.0)
    move(dropping)
    batch = next(iter(dropping.loader.micro_batches(0)))
    torch.manual_seed(0)
    with_masks, without = dropping.task.train().loss(batch).item(), dropping.task.eval().loss(batch).item()
    assert with_masks != pytest.approx(without, rel=1e-3)


def test_the_loss_of_a_pair_is_half_of_the_papers():
    torch.manual_seed(0)
    first, second, targets = torch.randn(5, 7), torch.randn(5, 7), torch.randint(0, 7, (5,))
    p, q = first.softmax(-1), second.softmax(-1)
    nll = -(p.log() + q.log())[torch.arange(5), targets].sum()
    divergence = ((p * (p / q).log()).sum() + (q * (q / p).log()).sum()) / 2
    ours = causal_lm._pair_loss(lambda x: x, schema.Regularisation(r_drop=3.0), targets, first, second)
    torch.testing.assert_close(ours, (nll + 3 * divergence) / 2)


def test_adaloras_orthogonality_is_that_of_peft(alone, tmp_path):
    ours = course(alone, tmp_path, adapter=ADALORA)
    move(ours)
    gradients = engine_gradients(ours)
    theirs = course(alone, tmp_path, adapter=ADALORA)
    move(theirs)
    theirs.task.train()
    theirs.task.base.set_attn_implementation("sdpa")
    weight = theirs.task.model.peft_config["default"].orth_reg_weight
    assert weight > 0
    count = theirs.loader.target_tokens(0)
    for number, (ids, targets) in enumerate(documents(theirs)):
        out = theirs.task.model(input_ids=ids[None], labels=torch.zeros_like(ids)[None])  # PEFT adds its own to it
        plain = F.cross_entropy(out.logits[0, :-1], torch.zeros_like(ids)[1:])
        loss = F.cross_entropy(out.logits[0], targets, ignore_index=-100, reduction="sum") / count
        (loss + (out.loss - plain if number == 0 else 0)).backward()
    assert_same(gradients, {name: p.grad for name, p in saved.trainable(theirs.task.model).items()})


@pytest.mark.parametrize("engine", ["fsdp", "zero3"])
@pytest.mark.parametrize(
    ("adapter", "regularisation"),
    [
        (LORA, {"neftune_alpha": 5.0}),
        (LORA, {"fgm_epsilon": 0.5}),
        ({**LORA, "dropout": 0.3}, {"r_drop": 1.0, "label_smoothing": 0.1}),
        (ADALORA, {}),
    ],
    ids=["neftune", "fgm", "r_drop", "adalora"],
)
def test_gradients_on_two_ranks_are_those_of_one(alone, two_ranks, tmp_path, engine, adapter, regularisation):
    one = cases.config(adapter, "single", regularisation=regularisation)
    two = cases.config(adapter, engine, regularisation=regularisation)
    reference = cases.gradients(alone, one, tmp_path, 2)[1]
    for ours in two_ranks.run(cases.gradients, two, tmp_path, 2):
        assert_same(ours[1], reference)


@pytest.mark.parametrize("engine", ["single"])
def test_weight_decay_on_matrices_leaves_biases_and_norms(alone, two_ranks, tmp_path, engine):
    def trained(**optim):
        config = cases.config({"method": "full"}, engine, optim={"weight_decay": 0.5, **optim}, steps=1)
        if engine == "single":
            return cases.trained_after(alone, config, tmp_path, None)
        return two_ranks.run(cases.trained_after, config, tmp_path, None)[0]

    some, every = trained(weight_decay_on="matrices"), trained()
    differ = {name for name in some if not torch.equal(some[name], every[name])}
    assert differ == {name for name, tensor in some.items() if tensor.dim() == 1}


@pytest.mark.parametrize("engine", ["single", "fsdp", "zero3"])
def test_lora_plus_moves_b_faster_by_its_ratio(alone, two_ranks, tmp_path, engine):
    def moved(ratio):
        config = cases.config({**LORA, "b_lr_ratio": ratio}, engine, steps=1)
        if engine == "single":
            return cases.trained_after(alone, config, tmp_path, None)
        return two_ranks.run(cases.trained_after, config, tmp_path, None)[0]

    plain, plus = moved(1.0), moved(4.0)
    for name in plain:
        if "lora_B" in name:  # it starts at zero, so what it is after a step is the step
            torch.testing.assert_close(plus[name], 4 * plain[name], rtol=1e-4, atol=1e-8)
        else:
            assert torch.equal(plus[name], plain[name])
