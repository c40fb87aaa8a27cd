"""The work of distft.merge: several adapters made one by PEFT, checkpoints averaged, a run folder around the result."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from distft.config.schema import Config, Lora
from distft.errors import ConfigError, DistftError
from distft.merge.settings import Merge
from distft.model import load
from distft.model.adapter.saved import FACTS
from distft.run.compatible import require_same_facts
from distft.run.identity import Environment
from distft.run.tensors import TensorFolder
from distft.run.weights import facts_beside
from distft.task import build as tasks

MERGED = "merged"
ADAPTER_FILE = "adapter_model.safetensors"


def combine(config: Config, members: list[Path], settings: Merge, folder: Path) -> Lora:
    """Writes `adapter/`, the adapters in `members` combined as asked; returns what `adapter` is in its config.

    Modules that train in full beside the adapter are averaged by the same weights, brought to a sum of 1.
    Raises ConfigError where the members do not fit together.
    """
    require_same_facts(members, "merge.runs")
    weights = settings.weights or [1 / len(members)] * len(members)
    folders = [TensorFolder(member, "adapter_model") for member in members]
    _require_same_names(members, folders, shapes="svd" not in settings.method and settings.method != "cat")
    model = _stand_in(config, members[0])
    names = [f"member{number}" for number in range(len(members))]
    for name, member, tensors in zip(names, members, folders, strict=True):
        wanted = LoraConfig.from_pretrained(member)
        wanted.modules_to_save = None  # PEFT combines none
        if name == names[0]:
            wrapped = PeftModel(model, wanted, adapter_name=name)
        else:
            wrapped.add_adapter(name, wanted)
        lora = {each: tensors.read(each) for each in tensors.names if _is_lora(each)}
        missing = set_peft_model_state_dict(wrapped, lora, adapter_name=name).unexpected_keys
        if missing:
            raise ConfigError(f"merge.runs: {member} must be an adapter of its base, which has no {missing[0]}")
    torch.manual_seed(settings.seed)
    wrapped.add_weighted_adapter(
        names,
        weights,
        MERGED,
        combination_type=settings.method,
        svd_rank=settings.r,
        svd_full_matrices=False,
        density=settings.density if "ties" in settings.method or "dare" in settings.method else None,
    )
    tensors = get_peft_model_state_dict(wrapped, adapter_name=MERGED, save_embedding_layers=False)
    shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    for name in [each for each in folders[0].names if not _is_lora(each)]:
        tensors[name] = _mean(name, folders, shares)
    # What PEFT combines it scales first, and by 1 from then on: alpha = r, which is 1 by LoRA's rule only.
    merged = wrapped.peft_config[MERGED].to_dict() | {"use_rslora": False, "lora_dropout": 0.0}
    _finish(folder / "adapter", members[0], tensors, merged | {"modules_to_save": _saved_modules(members[0])})
    return config.adapter.model_copy(  # type: ignore[return-value]
        update={"r": merged["r"], "alpha": float(merged["lora_alpha"]), "rslora": False, "dropout": 0.0}
    )


def average(members: list[Path], folder: Path) -> None:
    """Writes `adapter/`, the mean of the weights in `members`: checkpoints of one run (arXiv:1803.05407)."""
    stem = "adapter_model" if (members[0] / ADAPTER_FILE).exists() else "model"
    folders = [TensorFolder(member, stem) for member in members]
    _require_same_names(members, folders, shapes=True)
    shares = torch.full((len(members),), 1 / len(members), dtype=torch.float64)
    tensors = {name: _mean(name, folders, shares) for name in folders[0].names}
    _finish(folder / "adapter", members[-1], tensors, None, stem)


def describe(run: Path, members: list[Path], settings: Merge, folder: Path) -> None:
    """`environment.json`, with the base that all members share; and the tokenizer."""
    began = Environment.read(run)
    told = {"members": [str(member) for member in members], **settings.model_dump(mode="json", exclude={"to"})}
    Environment(began.base, began.data, merged=told).write(folder)
    tokenizer = run / "adapter"
    for file in tokenizer.glob("*") if tokenizer.is_dir() else []:
        if file.name.startswith(("tokenizer", "special_tokens", "chat_template", "added_tokens", "vocab", "merges")):
            shutil.copy2(file, folder / "adapter" / file.name)


def _stand_in(config: Config, member: Path) -> PreTrainedModel:
    """The base's modules with weights of the right shape that take no memory: PEFT reads nothing else of them."""
    architecture = tasks.build(config.task).architecture(facts_beside(member) or {})
    model = architecture.skeleton(load.read_hf_config(config.model), "eager", config.model.trust_remote_code)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            hollow = torch.zeros((), dtype=torch.float32).expand(parameter.shape)
            module._parameters[name] = nn.Parameter(hollow, requires_grad=False)
    return model


def _require_same_names(members: list[Path], folders: list[TensorFolder], shapes: bool) -> None:
    """Raises ConfigError where tensors differ by name, or by shape where that is asked for."""
    for member, tensors in zip(members[1:], folders[1:], strict=True):
        names = set(folders[0].names) ^ set(tensors.names)
        if shapes and not names:
            names = {name for name in tensors.names if tensors.shape(name) != folders[0].shape(name)}
        if names:
            raise ConfigError(
                f"merge: members must hold the same tensors, {len(names)} differ between {members[0]} and {member}, "
                f"such as {min(names)}; leave one out"
            )


def _mean(name: str, folders: list[TensorFolder], shares: Tensor) -> Tensor:
    total = sum(share * tensors.read(name).double() for share, tensors in zip(shares, folders, strict=True))
    assert isinstance(total, Tensor)
    return total.float()


def _finish(
    adapter: Path,
    member: Path,
    tensors: dict[str, Tensor],
    settings: dict[str, Any] | None,
    stem: str = "adapter_model",
) -> None:
    """The small files beside the weights, a member's own but for `settings`; and the weights, read back."""
    adapter.mkdir()
    for name in ("adapter_config.json", "config.json", FACTS):
        if (member / name).exists():
            shutil.copy2(member / name, adapter / name)
    if settings is not None:
        began = json.loads((member / "adapter_config.json").read_text(encoding="utf-8"))
        kept = {"base_model_name_or_path": began["base_model_name_or_path"], "inference_mode": True}
        text = json.dumps({**settings, **kept}, indent=2, default=sorted, sort_keys=True)
        (adapter / "adapter_config.json").write_text(text, encoding="utf-8")
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        adapter / f"{stem}.safetensors",
        {"format": "pt"},
    )
    back = TensorFolder(adapter, stem)
    if {name: back.shape(name) for name in back.names} != {name: tuple(t.shape) for name, t in tensors.items()}:
        raise DistftError(f"merge: {adapter} does not hold what was written to it; nothing was merged")


def _saved_modules(member: Path) -> list[str] | None:
    settings = json.loads((member / "adapter_config.json").read_text(encoding="utf-8"))
    saved: list[str] | None = settings.get("modules_to_save")
    return saved


def _is_lora(name: str) -> bool:
    return "lora_" in name.rpartition("base_model.model.")[2]
