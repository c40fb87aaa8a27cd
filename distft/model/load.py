"""The frozen base, streamed: a skeleton on the meta device, then one block at a time read, quantised and handed over.

No rank ever holds more than its share of the base plus one block.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from distft.config import schema
from distft.errors import ConfigError
from distft.model import attention, gguf, isolation, prequantised
from distft.model.adapter import attach as adapter
from distft.model.architecture import CAUSAL, Architecture
from distft.model.base_files import safetensors_in as _safetensors_in
from distft.model.base_files import weight_files
from distft.model.hf_config import read_hf_config
from distft.model.identity import identify as _identity
from distft.model.quantize import Narrow, Nf4, StoredLinear, encoding_for
from distft.model.recompute import checkpoint_activations
from distft.model.weights import Weights, random_readers, safetensors_readers
from distft.runtime.location import choose, locate
from distft.runtime.processor import has_bfloat16_units

logger = logging.getLogger(__name__)
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Loaded:
    """A model with its base in place, and what was learnt on the way."""

    model: PreTrainedModel | PeftModel
    compute_dtype: torch.dtype
    trainable: str
    """What trains, in a sentence: count, share, dtype, names."""
    identity: dict[str, Any]
    """Which base this is: source, revision and a digest of its content; and which teacher."""
    teacher: "Loaded | None" = None
    """The architecture's second model."""


def compute_dtype(config: schema.Model, device: torch.device) -> torch.dtype:
    """The matmul precision: as asked, or `dtype` where the device is good at it.

    A teacher's is its own section's, not the student's: a bfloat16 teacher stays one beside a float32 student.
    """
    if config.compute_dtype != "auto":
        return DTYPES[config.compute_dtype]
    slow = device.type == "cpu" and not has_bfloat16_units()
    return torch.float32 if slow else DTYPES[config.dtype]


def check(config: schema.Model, max_length: int) -> None:
    """What can be known of the model before anything is written: it is there, and rows fit its context.

    Raises ConfigError with every problem.
    """
    problems = []
    hf_config = read_hf_config(config)
    context = getattr(hf_config, "max_position_embeddings", None)
    if context is not None and max_length > context:
        problems.append(
            f"data.max_length: must be at most the model's context of {context}, got {max_length}; "
            f"set data.max_length={context} or take a model with a longer context"
        )
    if (refused := prequantised.refusal(prequantised.quantization_of(hf_config))) is not None:
        problems.append(refused)
    if config.random_init is None:
        source = choose(config.source)
        path = locate(source)
        if path is not None and path.is_dir():
            try:
                _safetensors_in(path, source)
            except ConfigError as error:
                problems += error.problems
    if problems:
        raise ConfigError(problems)


def load(
    config: schema.Model,
    adapter_config: schema.AnyAdapter | None,
    *,
    seed: int,
    device: torch.device,
    shard: Callable[[nn.Module], None],
    architecture: Architecture = CAUSAL,
) -> Loaded:
    """Builds the model block by block, `shard(block)` taking each over as soon as its weights are real. Without an
    `adapter_config` nothing of it trains.

    All ranks must call it, since `shard` may be a collective. What lies outside the blocks (embeddings, last norm,
    head) is real but whole on return: the engine shards it together with the root.

    Raises ConfigError for a source without weights, or with weights missing, named.
    """
    attention.register()
    stored, compute = DTYPES[config.dtype], compute_dtype(config, device)
    implementation = _attention(config.attention, adapter_config, device, architecture)
    quantised = prequantised.quantization_of(read_hf_config(config))
    skeleton = _skeleton(config, architecture, implementation)
    heads = architecture.new_modules(skeleton)
    skeleton.config.use_cache = False
    skeleton.tie_weights()
    if config.quantization != "none":
        _require_linear_blocks(skeleton)
    files = weight_files(config)
    weights = _open_weights(config, skeleton, files, quantised, seed)
    new = random_readers(skeleton, seed)
    new = {name: new[name] for name in new if any(name.startswith(f"{head}.") for head in heads)}
    weights.check(new, cut_short=config.num_hidden_layers is not None)
    weights.add(new)
    _untie(skeleton, list(weights.parted()))
    changes_base = adapter_config is not None and bool(adapter_config.traits.changes_base)
    base = _Base(skeleton, weights, device, changes_base)
    model = adapter.attach(skeleton, adapter_config, seed=seed, heads=heads, task=architecture.peft_task)
    trainable = adapter.describe_trainable(model)
    checkpoint_activations(skeleton, config.gradient_checkpointing)

    for path, unit in _units(skeleton):
        base.fill(path, torch.float32 if changes_base else stored)
        if not path:
            base.tie()
        if changes_base:
            adapter.initialise(model, unit, adapter_config, seed)
        if path:
            base.freeze(unit, config.quantization, stored, compute)
        else:
            base.round(unit, stored, compute)
        if not changes_base:
            adapter.initialise(model, unit, adapter_config, seed)
        if path:
            base.require_real(unit[0], path, config)
            shard(unit[0])
    base.require_real(model, "", config)
    for module in model.modules():
        for key, buffer in module.named_buffers(recurse=False):
            setattr(module, key, buffer.to(device))
    identity, teacher = _identity(config, skeleton, files), None
    if architecture.teacher is not None:
        teacher = load(architecture.teacher, None, seed=seed, device=device, shard=shard)
        identity["teacher"] = teacher.identity
    return Loaded(model, compute, trainable, identity, teacher)


def plain_config(config: schema.Model) -> Any:
    """The model's config, of weights that are quantised no more once they are read."""
    hf_config = read_hf_config(config)
    prequantised.forget(hf_config)
    return hf_config


def _skeleton(config: schema.Model, architecture: Architecture, attention: str) -> PreTrainedModel:
    """The model on meta, by `attention`, or by its own where that was not asked for and it knows no other."""
    try:
        skeleton = architecture.skeleton(plain_config(config), attention, config.trust_remote_code)
        fits = config.attention != "auto" or isolation.can_switch(skeleton)
    except (KeyError, ValueError, ImportError) as error:
        if config.attention != "auto":
            raise ConfigError(
                f"model.attention: must be one that the model knows, got {attention} "
                f"({' '.join(str(error).split())[:200]}); set model.attention=auto"
            ) from error
        fits = False
    if not fits:
        skeleton = architecture.skeleton(plain_config(config), None, config.trust_remote_code)
    isolation.offer(skeleton, config.attention)
    return skeleton


def _units(skeleton: PreTrainedModel) -> Iterator[tuple[str, list[nn.Module]]]:
    """Name prefix and modules of each transformer block in order, then `""` and everything outside the blocks."""
    kinds = set(skeleton._no_split_modules or ())
    rest = {id(module): module for module in skeleton.modules()}
    for name, block in [(n, m) for n, m in skeleton.named_modules() if type(m).__name__ in kinds]:
        unit = list(block.modules())
        yield f"{name}.", unit
        for module in block.modules():
            rest.pop(id(module), None)
    yield "", [module for module in skeleton.modules() if id(module) in rest]


def _require_linear_blocks(skeleton: PreTrainedModel) -> None:
    """Quantisation reaches linear layers. Experts fused into one parameter would stay as they are, in silence."""
    blocks = [module for path, unit in _units(skeleton) if path for module in unit]  # BERT's embeddings are one too
    weights = [p for m in blocks if not isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)]
    in_blocks = sum(p.numel() for p in weights)
    linear = sum(m.weight.numel() for m in blocks if isinstance(m, nn.Linear))
    if linear < 0.9 * in_blocks:
        raise ConfigError(
            f"model.quantization: nf4 needs the blocks' weights in linear layers, {type(skeleton).__name__} has "
            f"{linear / in_blocks:.0%} of them there (fused experts are not); use model.quantization=none"
        )


class _Base:
    """The base's own modules, remembered from before the adapter wrapped them."""

    def __init__(self, skeleton: PreTrainedModel, weights: Weights, device: torch.device, changed: bool):
        """`changed`: the adapter's start takes something out of the base."""
        self._weights, self._device = weights, device
        self._slots: dict[str, tuple[nn.Module, str]] = {}
        for name in skeleton.state_dict():
            path, _, attribute = name.rpartition(".")
            self._slots[name] = (skeleton.get_submodule(path), attribute)
        self._tied: dict[str, str] = dict(skeleton.all_tied_weights_keys)
        self._names = {id(m): f"{path}.weight" for path, m in skeleton.named_modules() if isinstance(m, nn.Linear)}
        self._changed = changed

    def fill(self, prefix: str, float_dtype: torch.dtype) -> None:
        """Makes everything under `prefix` real, on this rank's device; what trains in float32."""
        for name, tensor in self._weights.read(prefix):
            module, attribute = self._slots[name]
            old = getattr(module, attribute)
            if old.shape != tensor.shape:
                raise ConfigError(
                    f"model.source: {name} must have shape {list(old.shape)} as its config says, got "
                    f"{list(tensor.shape)}; config and weights belong to different models"
                )
            dtype = torch.float32 if old.requires_grad else float_dtype
            tensor = tensor.to(self._device, dtype if tensor.is_floating_point() else None)
            real = nn.Parameter(tensor, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else tensor
            setattr(module, attribute, real)

    def tie(self) -> None:
        """Makes tied weights one parameter again. `tie_weights` knows no head that trains beside its frozen copy."""
        for name, source in self._tied.items():
            (module, attribute), (owner, owned) = self._slots[name], self._slots[source]
            weight, now = getattr(owner, owned), getattr(module, attribute)
            if now.requires_grad and not weight.requires_grad:  # a head that trains has parted from the embeddings
                weight = nn.Parameter(weight.detach().float().clone())
            setattr(module, attribute, weight)

    def freeze(self, unit: list[nn.Module], quantization: str, stored: torch.dtype, compute: torch.dtype) -> None:
        """Brings the frozen weights of `unit` into the form they are kept in: rounded to `stored`, ready for `compute`.

        The head stays whole (`quantization` and narrowing are for the blocks): the loss reads its weight itself.
        """
        in_unit = {id(module) for module in unit}
        for parent in unit:
            for name, child in list(parent.named_children()):
                if id(child) in self._names.keys() & in_unit:
                    assert isinstance(child, nn.Linear)
                    if child.weight.requires_grad:
                        continue
                    encoding = encoding_for(child, quantization, stored, compute)
                    if encoding is not None:
                        setattr(parent, name, self._stored(child, encoding, compute))
                        in_unit.discard(id(child))
        self.round(unit, stored, compute)

    def _stored(self, linear: nn.Linear, encoding: Nf4 | Narrow, compute: torch.dtype) -> StoredLinear:
        """`linear` encoded; in the file's own NF4 codes where it has them and they still stand for the weight."""
        read = self._weights.nf4(self._names[id(linear)]) if isinstance(encoding, Nf4) else None
        if read is None or self._changed:
            return StoredLinear(linear, encoding)
        encoding, codes = read.stored(compute)
        return StoredLinear(linear, encoding, codes.to(self._device))

    def round(self, unit: list[nn.Module], stored: torch.dtype, compute: torch.dtype) -> None:
        for module in unit:
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad and parameter.is_floating_point() and not parameter.is_meta:
                    parameter.data = parameter.data.to(stored).to(compute)

    def require_real(self, module: nn.Module, path: str, config: schema.Model) -> None:
        missing = [f"{path}.{name}".lstrip(".") for name, p in module.named_parameters() if p.is_meta]
        if missing:
            raise ConfigError(
                f"model.source: {config.source!r} must hold every weight of the model, "
                f"{len(missing)} are missing: {', '.join(missing[:3])}; the download may be incomplete"
            )


def _untie(skeleton: PreTrainedModel, parted: list[tuple[str, str]]) -> None:
    """Parts weights that the config ties and the file holds apart, as `transformers` does."""
    for name, source in parted:
        logger.warning(
            "model.source: config.json ties %s to %s, and the file holds both, with other values: they stay apart",
            name,
            source,
        )
        path, _, attribute = name.rpartition(".")
        old = skeleton.get_parameter(name)
        setattr(skeleton.get_submodule(path), attribute, nn.Parameter(torch.empty_like(old, device="meta")))
        skeleton.all_tied_weights_keys.pop(name)
        skeleton.config.tie_word_embeddings = skeleton.config.get_text_config().tie_word_embeddings = False


def _open_weights(
    config: schema.Model, skeleton: PreTrainedModel, files: list[Path], quantised: dict[str, Any], seed: int
) -> Weights:
    if config.random_init is not None:
        return Weights(skeleton, random_readers(skeleton, seed))
    if files[0].suffix != ".safetensors":
        return Weights(skeleton, gguf.tensor_readers(files[0], skeleton))
    return Weights(skeleton, prequantised.plain(safetensors_readers(files), quantised))


def _attention(
    wanted: str, adapter_config: schema.AnyAdapter | None, device: torch.device, architecture: Architecture
) -> str:
    if wanted != "auto":
        return wanted
    if adapter_config is not None and adapter_config.traits.is_cache:  # there only masks describe who sees whom
        return "sdpa"
    if architecture.attention is not None:
        return architecture.attention
    from transformers.utils import is_flash_attn_2_available

    return "flash_attention_2" if device.type == "cuda" and is_flash_attn_2_available() else attention.NAME
