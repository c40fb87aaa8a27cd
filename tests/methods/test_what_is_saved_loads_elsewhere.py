"""What a checkpoint holds is read by PEFT, or into the plain model, and gives the loss that the trained model has."""

from contextlib import nullcontext

import method_cases as cases
import methods
import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import load_file, save_file

from distft.config import schema
from distft.data import pack
from distft.data.loader import collate
from distft.model.adapter import bottleneck, saved
from distft.model.load import load
from distft.task.causal_lm import CausalLM

METHODS = {**methods.shipped(), **methods.unshipped()}
BASE_CHANGES = ("pissa", "loftq")  # theirs fits the changed base; `export` converts it
CPU = torch.device("cpu")


def plain(config):
    """The base without an adapter, as transformers has it."""
    method = schema.Layers(method="layers", count=1)
    return load(config.model, method, seed=config.seed, device=CPU, shard=lambda block: None).model.requires_grad_(
        False
    )


def rows():
    from engine_cases import corpus

    documents = corpus()
    return documents, pack.plan(documents.lengths, 40, False), [0, 1, 2]


@torch.no_grad()
def save_moved(config, folder):
    """Writes a model whose every trained number has moved from its start; its loss, and that with the adapter off."""
    loaded = load(config.model, config.adapter, seed=config.seed, device=CPU, shard=lambda block: None)
    trained = saved.trainable(loaded.model)
    for number, name in enumerate(sorted(trained)):
        trained[name] += 0.2 * torch.randn(trained[name].shape, generator=torch.Generator().manual_seed(number))
    values = {name: parameter.detach() for name, parameter in trained.items()}
    save_file(
        {**values, **saved.beside(loaded.model).of(values)},
        folder / f"{saved.weights_file(loaded.model)}.safetensors",
    )
    for name, text in saved.describe(loaded.model, config.adapter, "none", {}).items():
        (folder / name).write_text(text)
    task, batch = CausalLM(loaded.model, torch.float32).eval(), collate(*rows(), pad_id=0, seed=0)
    with task.without_adapter() if can_be_switched_off(config.adapter) else nullcontext():
        switched_off = task.loss(batch).item()
    return task.loss(batch).item(), switched_off


def can_be_switched_off(adapter):
    return isinstance(adapter, schema.Peft) and adapter.method != "adaption_prompt"


@torch.no_grad()
def loss_of(model, num_virtual=0):
    """Each document alone through the model's own forward pass and logits."""
    total = 0.0
    documents, _, chosen = rows()
    model.eval()
    for number in chosen:
        ids, targets = (torch.from_numpy(part) for part in documents.document(number))
        logits = model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).logits[0, num_virtual:]
        total += F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum").item()
    return total


@pytest.mark.parametrize("method", [m for m in METHODS if m not in BASE_CHANGES])
def test_the_file_gives_the_trained_model_and_switched_off_it_is_the_base(method, tmp_path):
    config, folder = cases.config(METHODS[method], "single"), tmp_path
    ours, switched_off = save_moved(config, folder)
    base = plain(config)
    base.set_attn_implementation("sdpa")
    untrained = loss_of(base)
    if can_be_switched_off(config.adapter):
        assert switched_off == pytest.approx(untrained, rel=2e-6)
    num_virtual = 0
    if (folder / "adapter_model.safetensors").exists():
        model = PeftModel.from_pretrained(base, folder)
        if config.adapter.method in ("prompt_tuning", "p_tuning"):
            num_virtual = config.adapter.options["num_virtual_tokens"]
    elif config.adapter.method == "bottleneck":
        model = bottleneck.load(base, folder)
    else:
        values = load_file(next(folder.glob("*.safetensors")))
        if "lm_head.weight" in values:
            base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.clone())  # it parted from the embeddings
        outcome = base.load_state_dict(values, strict=False)
        assert not outcome.unexpected_keys
        model = base
    assert loss_of(model, num_virtual) == pytest.approx(ours, rel=2e-6)
    assert abs(ours - untrained) > 2e-5 * untrained, "what moved must show"
