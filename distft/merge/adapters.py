"""The work of distft.merge: several adapters made one, checkpoints averaged, a run folder around the result."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from torch import Tensor

from distft.config.schema import Config, Lora
from distft.errors import ConfigError, DistftError
from distft.merge.deltas import Delta, combined, factored, least_rank, side_by_side
from distft.merge.settings import Merge
from distft.model import load
from distft.model.adapter.saved import FACTS
from distft.run.compatible import require_same_facts
from distft.run.identity import Environment
from distft.run.tensors import TensorFolder
from distft.run.weights import facts_beside
from distft.task import build as tasks

ADAPTER_FILE = "adapter_model.safetensors"


def combine(config: Config, members: list[Path], settings: Merge, folder: Path) -> Lora:
    """Writes `adapter/`, the adapters in `members` combined as asked; returns what `adapter` is in its config.

    Modules that train in full beside the adapter are averaged by the same weights, brought to a sum of 1.
    Raises ConfigError where the members do not fit together.
    """
    require_same_facts(members, "merge.runs")
    weights = settings.weights or [1 / len(members)] * len(members)
    folders = [TensorFolder(member, "adapter_model") for member in members]
    _require_same_names(members, folders, shapes=False)
    whole = [name for name in folders[0].names if not _is_lora(name)]
    if whole and sum(weights) == 0:
        raise ConfigError(
            f"merge.weights: must have a sum other than 0, got {weights}: they also average {whole[0]}, which trained "
            "in full; change one"
        )
    shares = torch.tensor(weights, dtype=torch.float64) / (sum(weights) or 1)
    tensors = {name: _mean(name, folders, shares) for name in whole}
    layers = _Layers(config, members, folders)
    deltas, draw = {}, torch.Generator().manual_seed(settings.seed)
    for path in layers.paths:
        deltas[path] = _combined([layers.delta(path, i) for i in range(len(members))], weights, settings, draw)
    r = settings.r or max(delta.rank for delta in deltas.values())
    for path, delta in deltas.items():
        tensors[path], tensors[_second(path)] = delta.of_rank(r).factors()
    for name in layers.biases:
        scaled_by = [weight * layers.scale(name, i) for i, weight in enumerate(weights)]
        of_member = [by * tensors.read(name) for by, tensors in zip(scaled_by, folders, strict=True)]
        tensors[name] = torch.stack(of_member).sum(0)
    scaled = {"r": r, "lora_alpha": r, "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False}
    merged = LoraConfig.from_pretrained(members[0]).to_dict() | scaled | {"lora_dropout": 0.0}
    _finish(folder / "adapter", members[0], tensors, merged)
    return config.adapter.model_copy(  # type: ignore[return-value]
        update={"r": r, "alpha": float(r), "rslora": False, "dropout": 0.0}
    )


def _combined(deltas: list[Delta], weights: list[float], settings: Merge, draw: torch.Generator) -> Delta:
    if settings.prunes:
        method = settings.method.removesuffix("_svd")
        change = combined([delta.dense() for delta in deltas], weights, method, settings.density, draw)
        return factored(change, settings.r or max(delta.rank for delta in deltas))
    together = side_by_side(deltas, weights)
    return together if settings.method == "cat" else least_rank(together)


class _Layers:
    """The layers that the adapters of all `members` change: PEFT says of each its scale, rank and experts."""

    def __init__(self, config: Config, members: list[Path], folders: list[TensorFolder]):
        self._folders, self._members = folders, members
        architecture = tasks.build(config.task).architecture(facts_beside(members[0]) or {})
        model: Any = architecture.skeleton(load.read_hf_config(config.model), "eager", config.model.trust_remote_code)
        for number, member in enumerate(members):
            wanted = LoraConfig.from_pretrained(member)
            wanted.modules_to_save, wanted.init_lora_weights = None, False
            if number == 0:
                model = PeftModel(model, wanted, adapter_name="0", low_cpu_mem_usage=True)
            else:
                model.add_adapter(str(number), wanted, low_cpu_mem_usage=True)
        self._model = model
        names = [name for name in folders[0].names if _is_lora(name)]
        self.biases = [name for name in names if name.endswith(".bias")]
        self.paths = [name for name in names if "lora_A" in name or "lora_embedding_A" in name]
        """Names of the first factors."""

    def delta(self, path: str, number: int) -> Delta:
        """What the adapter of that member adds to a layer, its scale in it."""
        a, b = (self._folders[number].read(name) for name in (path, _second(path)))
        layer = self._layer(path)
        experts = getattr(layer, "num_experts", 1)
        if a.dim() != 2 or experts * layer.r[str(number)] != a.shape[0]:
            raise ConfigError(
                f"merge.runs: {self._members[number]} must hold {path} as its adapter_config.json says, got "
                f"{list(a.shape)}; leave it out"
            )
        return Delta.of_factors(a, b, experts, self.scale(path, number))

    def scale(self, name: str, number: int) -> float:
        return float(self._layer(name).scaling[str(number)])

    def _layer(self, name: str) -> Any:
        path = name.rpartition(".lora_")[0].removeprefix("base_model.model.")
        try:
            return self._model.get_base_model().get_submodule(path)
        except AttributeError as error:
            raise ConfigError(f"merge.runs: must be adapters of the run's base, which has no {path}") from error


def _second(path: str) -> str:
    return path.replace("lora_A", "lora_B").replace("lora_embedding_A", "lora_embedding_B")


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


def _is_lora(name: str) -> bool:
    return "lora_" in name.rpartition("base_model.model.")[2]
