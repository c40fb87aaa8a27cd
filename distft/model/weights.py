"""Where base weights come from, one tensor at a time: safetensors, GGUF, or a seed.

Names and layouts on disk differ from the model's (fused experts, old prefixes, GGUF's own names). `transformers` holds
that knowledge as weight conversions; its loader applies them to a whole model at once, ours block by block.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from distft.errors import ConfigError
from distft.runtime.seed import derive_seed

Readers = dict[str, Callable[[], Tensor]]


class Weights:
    """Tensors of a checkpoint under the names of `skeleton`, read when asked for and then forgotten."""

    def __init__(self, skeleton: PreTrainedModel, readers: Readers):
        self._skeleton = skeleton
        self._conversions: dict[str, WeightRenaming | WeightConverter] = {}
        self.unexpected: list[str] = []
        transforms = get_model_conversion_mapping(skeleton)
        renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
        converters = [t for t in transforms if isinstance(t, WeightConverter)]
        by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
        expected = skeleton.state_dict()
        for key in sorted(readers, key=dot_natural_key):
            name, pattern = rename_source_key(key, renamings, converters, skeleton.base_model_prefix, expected)
            if name not in expected and key in expected:
                name, pattern = key, None
            if name not in expected:
                self.unexpected.append(key)
                continue
            fresh = WeightRenaming(key, name) if pattern is None else deepcopy(by_pattern[pattern])
            self._conversions.setdefault(name, fresh).add_tensor(name, key, pattern or key, readers[key])

    def add(self, readers: Readers) -> None:
        """What the checkpoint does not hold is read from these, under the skeleton's own names."""
        for name, reader in readers.items():
            if name not in self._conversions:
                made = WeightRenaming(name, name)
                made.add_tensor(name, name, name, reader)
                self._conversions[name] = made

    def read(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        """Name and full tensor (on the CPU, in the file's dtype) of everything under `prefix`, each once."""
        for name in [name for name in self._conversions if name.startswith(prefix)]:
            converted = self._conversions.pop(name).convert(name, model=self._skeleton, config=self._skeleton.config)
            for target, tensor in converted.items():
                yield target, tensor[0] if isinstance(tensor, list) else tensor


def safetensors_readers(files: list[Path]) -> Readers:
    """A reader for each tensor in `files`. Raises ConfigError for a damaged or truncated one."""
    readers: Readers = {}
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                readers.update({key: partial(_read_safetensor, file, key) for key in opened.keys()})  # noqa: SIM118
        except SafetensorError as error:
            raise ConfigError(
                f"model.source: weights must be whole safetensors files, got {file} ({error}); download it again"
            ) from error
    return readers


def _read_safetensor(file: Path, key: str) -> Tensor:
    # Opened anew each time: pages of a mapping that stays open count as this process's memory.
    with safe_open(file, "pt") as opened:
        return opened.get_tensor(key).clone()


def random_readers(skeleton: PreTrainedModel, seed: int) -> Readers:
    """Random weights that depend on (seed, name) alone: norms 1, biases 0, matrices N(0, initializer_range)."""
    std = getattr(skeleton.config, "initializer_range", 0.02)
    tied = set(skeleton.all_tied_weights_keys)

    def draw(name: str, parameter: nn.Parameter) -> Tensor:
        if parameter.dim() < 2:
            return torch.zeros(parameter.shape) if name.endswith("bias") else torch.ones(parameter.shape)
        generator = torch.Generator().manual_seed(derive_seed(seed, name))
        return torch.empty(parameter.shape).normal_(0, std, generator=generator)

    return {name: partial(draw, name, p) for name, p in skeleton.named_parameters() if name not in tied}
