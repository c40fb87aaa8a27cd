"""What a student learns of a teacher is the formula on both models' full logits, and no more memory than a chunk."""

import json
import shutil

import numpy as np
import pytest
import small
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from distft.config import schema
from distft.data.loader import collate
from distft.data.pack import plan
from distft.errors import ConfigError
from distft.model.load import load
from distft.task import build as tasks
from distft.task import divergence

ROWS = [
    {"prompt": "what is the sun ", "completion": "blue sky"},
    {"prompt": "tea ", "completion": "never seven rain in paris"},
    {"prompt": "ann works at ", "completion": "acme globex"},
]
VARIANTS = {
    "forward": {},
    "reverse, warm": {"direction": "reverse", "temperature": 2.0, "kl_weight": 0.7},
    "forward, likeliest": {"top_k": 5, "temperature": 1.5},
    "reverse, likeliest": {"top_k": 5, "direction": "reverse"},
    "teacher alone": {"kl_weight": 1.0},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory, words_folder):
    """Folders of a student and of a wider, deeper teacher whose output layer is padded by 8."""
    student, teacher = tmp_path_factory.mktemp("student"), tmp_path_factory.mktemp("teacher")
    wider = {**small.LLAMA, "hidden_size": 48, "num_hidden_layers": 3, "vocab_size": 48}
    for seed, (folder, shape) in enumerate(((student, small.LLAMA), (teacher, wider))):
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape)).save_pretrained(folder)
        for file in words_folder.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    return student, teacher


def section(teacher, **changes):
    source = {"source": str(teacher), "dtype": "float32", "compute_dtype": "float32"}
    return schema.Distillation.model_validate({"name": "distillation", "teacher": source, **changes})


def module_on(student, wanted, adapter=None):
    source = schema.Model(source=str(student), dtype="float32", compute_dtype="float32")
    task, device = tasks.build(wanted), torch.device("cpu")
    shape, adapter = task.architecture({}), adapter or schema.Full(method="full")
    loaded = load(source, adapter, seed=0, device=device, shard=lambda block: None, architecture=shape)
    return task.module(loaded, {})


def all_of(corpus):
    rows = plan(corpus.lengths, 48, True)
    return collate(corpus, rows, np.arange(len(rows)), pad_id=0, seed=0)


def expected(wanted, corpus, student, teacher):
    """Of each document: sum of its token losses, of its divergences, of its cross-entropies."""
    t, results = wanted.temperature, []
    for i in range(corpus.num_documents):
        ids, targets = (torch.from_numpy(part) for part in corpus.document(i))
        kept = targets != -100
        logits = student(input_ids=ids[None]).logits[0, kept]
        with torch.no_grad():
            p = torch.softmax(teacher(input_ids=ids[None]).logits[0, kept][:, :40] / t, -1)
        q = torch.softmax(logits / t, -1)
        if wanted.top_k is not None:
            best = p.topk(wanted.top_k).indices
            p, q = (torch.cat([x.gather(1, best), 1 - x.gather(1, best).sum(1, keepdim=True)], 1) for x in (p, q))
        kl = (p * (p / q).log()).sum() if wanted.direction == "forward" else (q * (q / p).log()).sum()
        cross_entropy = F.cross_entropy(logits, targets[kept], reduction="sum")
        results.append(((1 - wanted.kl_weight) * cross_entropy + wanted.kl_weight * t**2 * kl, kl, cross_entropy))
    return results


@pytest.mark.parametrize("rows", ["all at once", "two at a time"])
@pytest.mark.parametrize("name", VARIANTS)
def test_loss_metrics_and_gradients_are_those_of_the_formula(read, models, monkeypatch, name, rows):
    if rows == "two at a time":
        monkeypatch.setattr(divergence, "CHUNK_LOGITS", 2 * 40)
    wanted = section(models[1], **VARIANTS[name])
    corpus = read(wanted, ROWS).train
    module, batch = module_on(models[0], wanted), all_of(corpus)
    student, teacher = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in models)
    reference = expected(wanted, corpus, student, teacher)
    total = sum(loss for loss, _, _ in reference)
    loss, outputs = module.eval()(batch)
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    for number, output in zip(batch.documents, outputs, strict=True):
        assert output.tolist() == pytest.approx([part.item() for part in reference[number][1:]], rel=1e-4, abs=1e-6)
    scores = tasks.build(wanted).scores(dict(zip(batch.documents, outputs, strict=True)), corpus, {})
    assert scores.numbers["kl"] == pytest.approx(
        sum(kl.item() for _, kl, _ in reference) / corpus.num_targets, rel=1e-4
    )
    (module.train()(batch) * 0.37).backward()
    (total * 0.37).backward()
    for (key, ours), theirs in zip(module.model.named_parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-6, msg=key)
    assert not any(p.requires_grad or p.grad is not None for p in module.teacher.parameters())


def test_the_backward_pass_does_not_read_the_head():
    """FSDP2 frees the gathered weight after the forward pass."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(6, 8, requires_grad=True), torch.randn(20, 8)

    def measure(states, head, bias, rows):
        logits = F.linear(states, head, bias)
        return logits.logsumexp(1).sum(), logits[:, 0]

    (wanted,) = torch.autograd.grad(F.linear(hidden, weight).logsumexp(1).sum(), hidden)
    gathered = weight.clone()
    loss, numbers = divergence.summed(measure, hidden, gathered, None)
    gathered.untyped_storage().resize_(0)
    torch.testing.assert_close(torch.autograd.grad(loss, hidden)[0], wanted)
    torch.testing.assert_close(numbers, F.linear(hidden, weight)[:, 0])


def test_an_empty_batch_gives_a_zero_that_reaches_what_trains(read, models):
    wanted = section(models[1])
    corpus = read(wanted, ROWS).train
    module = module_on(models[0], wanted, schema.Lora(method="lora")).train()
    loss = module(collate(corpus, plan(corpus.lengths, 48, True), np.arange(0), pad_id=0, seed=0))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in module.model.parameters() if p.requires_grad)


def test_the_base_at_higher_precision_teaches_its_4_bit_self(read, models):
    """At the start all that differs is the rounding."""
    wanted = section(models[0], kl_weight=1.0)
    corpus = read(wanted, ROWS).train
    task, device = tasks.build(wanted), torch.device("cpu")
    found = {}
    for quantization in ("none", "nf4"):
        source = schema.Model(
            source=str(models[0]), dtype="float32", compute_dtype="float32", quantization=quantization
        )
        lora = schema.Lora(method="lora")
        shape = task.architecture({})
        loaded = load(source, lora, seed=0, device=device, shard=lambda block: None, architecture=shape)
        found[quantization] = task.module(loaded, {}).eval()(all_of(corpus))[0].item()
    assert found["none"] == pytest.approx(0, abs=1e-5) and found["nf4"] > 1e-3


def test_a_teacher_of_another_vocabulary_is_refused(read, models, tmp_path):
    from transformers import AutoTokenizer

    other = AutoTokenizer.from_pretrained(models[1])
    other.add_tokens(["zebra"])
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"task\.teacher\.source: must have the vocabulary .* 1 differ \('zebra'\)"):
        read(section(tmp_path / "other"), ROWS)


def test_a_student_of_the_first_blocks_is_the_base_up_to_there(models):
    source = schema.Model(source=str(models[1]), dtype="float32", compute_dtype="float32", num_hidden_layers=2)
    device, full = torch.device("cpu"), schema.Full(method="full")
    model = load(source, full, seed=0, device=device, shard=lambda block: None).model
    whole = AutoModelForCausalLM.from_pretrained(models[1]).eval()
    model.eval().set_attn_implementation("sdpa")
    ids = torch.tensor([[2, 5, 6, 7, 3]])
    states = whole(input_ids=ids, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(model(input_ids=ids).logits, whole.lm_head(whole.model.norm(states)))
    more = source.model_copy(update={"num_hidden_layers": 9})
    with pytest.raises(ConfigError, match=r"model\.num_hidden_layers: must be at most the 3 of the model, got 9"):
        load(more, full, seed=0, device=device, shard=lambda block: None)


def run_words(words_folder, folder, teacher, *more):
    words = small.run_words("distillation", words_folder, folder, small.LLAMA, small.completion)
    # `hub` stores in bfloat16, and computes in it where the processor has units for it: the student does neither.
    of_teacher = ["model@task.teacher=hub", f"task.teacher.source={teacher}", "task.teacher.dtype=float32"]
    return [*words, *of_teacher, "task.top_k=4", *more]


def numbers_of(run):
    ignored = ("time", "step_seconds", "tokens_per_second", "peak_memory_bytes")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ignored} for row in rows]


@pytest.mark.machine
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_teacher_that_is_remembered_teaches_the_same(commands, words_folder, models, tmp_path, world_size):
    asked = run_words(words_folder, tmp_path / "asked", models[1])
    assert commands.run(*asked, world_size=world_size).code == 0
    kept = run_words(words_folder, tmp_path / "kept", models[1], "task.cache=true")
    first = commands.run(*kept, world_size=world_size)
    assert first.code == 0, first.output
    assert f"teacher {models[1]}, frozen, computes in float32" in " ".join(first.output.split())
    for ours, theirs in zip(numbers_of(tmp_path / "kept" / "run"), numbers_of(tmp_path / "asked" / "run"), strict=True):
        assert ours.pop("split") == theirs.pop("split") and ours == pytest.approx(theirs, rel=1e-4)
    (folder,) = (tmp_path / "kept" / "cache").glob("*/teacher-*-train")
    said = np.load(folder / "log_probabilities.npy")
    assert np.exp(said).sum(1) == pytest.approx(np.ones(len(said)), rel=1e-5)
    again = commands.run(*kept, "name=again", world_size=world_size)
    assert again.code == 0 and "asked once" in first.output and "asked once" not in again.output
    assert numbers_of(tmp_path / "kept" / "again") == numbers_of(tmp_path / "kept" / "run")


def test_a_run_saves_the_student_alone_and_goes_on_with_the_same_teacher_only(commands, words_folder, models, tmp_path):
    teacher = shutil.copytree(models[1], tmp_path / "teacher")
    words = run_words(words_folder, tmp_path, teacher, "optim.schedule=constant")
    ended = commands.run(*words, "steps=3")
    assert ended.code == 0, ended.output
    last = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["loss"] == pytest.approx(0.5 * last["kl"] + 0.5 * last["cross_entropy"], rel=1e-4)
    names = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert len(names) == 2 * 7 * 2 and not any("teacher" in name for name in names)
    torch.manual_seed(7)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(teacher)).save_pretrained(teacher)
    refused = commands.run(*words, "steps=4")
    assert refused.code == 2 and "content must stay what the run began with" in refused.output
