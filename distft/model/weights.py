"""Where base weights come from, one tensor at a time: safetensors, GGUF, or a seed.

Names and layouts on disk differ from the model's (fused experts, old prefixes, GGUF's own names). `transformers` holds
that knowledge as weight conversions; its loader applies them to a whole model at once, ours block by block.
"""

import re
from collections.abc import Callable, Collection, Iterator
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
from distft.model.prequantised import Nf4Reader
from distft.runtime.seed import derive_seed

Readers = dict[str, Callable[[], Tensor]]
HARMLESS = (
    r"rotary_emb\.inv_freq",
    r"(^|\.)position_ids$",
    r"\.attn(\.attention)?\.(masked_)?bias$",
    r"(^|\.)(pooler|mtp)(\.|$)",
    r"(^|[._])(vision|visual|image|audio|speech|multi_?modal)([._]|$)",
    r"_(projector|connector)\.",
)
"""What files hold that no text model computes with: buffers of old, masks, poolers, drafts, the other modalities."""


class Weights:
    """Tensors of a checkpoint under the names of `skeleton`, read when asked for and then forgotten."""

    def __init__(self, skeleton: PreTrainedModel, readers: Readers):
        self._skeleton, self._readers = skeleton, readers
        self._conversions: dict[str, WeightRenaming | WeightConverter] = {}
        self._plain: dict[str, str] = {}  # ours to the file's, where one tensor is one
        self._unused: dict[str, str] = {}  # the file's to what would be ours
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
                self._unused[key] = name
                continue
            if pattern is None:
                self._plain[name] = key
            fresh = WeightRenaming(key, name) if pattern is None else deepcopy(by_pattern[pattern])
            self._conversions.setdefault(name, fresh).add_tensor(name, key, pattern or key, readers[key])
        for name, source in skeleton.all_tied_weights_keys.items():
            if name in self._plain and source not in self._conversions:  # a file may hold either of the two
                self.add({source: readers[self._plain[name]]})

    def check(self, new: Collection[str] = (), cut_short: bool = False) -> None:
        """Raises ConfigError where weights of the model are missing, or such as would change it have no place in it.

        `new`: parameters that no base has. `cut_short`: the model has fewer blocks than the file on purpose.
        """
        problems = []
        if missing := self._missing(new):
            problems.append(
                f"model.source: weights must be whole, {_count(missing, 'is', 'are')} missing in the file: "
                f"{', '.join(missing[:3])}; download or save the model again"
            )
        unused = {key: name for key, name in self._unused.items() if not is_harmless(self._skeleton, name, cut_short)}
        if self._has_prefix():  # what stands beside the base is the head of another task
            unused = {key: name for key, name in unused.items() if self._is_within(name)}
        if unused:
            problems.append(
                f"model.source: every weight in the file must have its place in the model that config.json describes, "
                f"{_count(unused, 'has', 'have')} none: {', '.join(list(unused)[:3])}; take the config.json that these "
                "weights were saved with"
            )
        if problems:
            raise ConfigError(problems)

    def _missing(self, new: Collection[str]) -> list[str]:
        there = {*self._conversions, *new}
        for name, source in self._skeleton.all_tied_weights_keys.items():
            if name in there or source in there:
                there |= {name, source}
        prefix = "" if self._has_prefix() else f"{self._skeleton.base_model_prefix}."
        return [name.removeprefix(prefix) for name, _ in self._skeleton.named_parameters() if name not in there]

    def _has_prefix(self) -> bool:
        """Whether the file names the base model as a part of a larger one."""
        prefix = f"{self._skeleton.base_model_prefix}."
        return not self._plain or any(key.startswith(prefix) for key in self._readers)

    def _is_within(self, name: str) -> bool:
        """Whether a name is of a module that the model has, or of its base."""
        first = name.partition(".")[0]
        return first == self._skeleton.base_model_prefix or first in dict(self._skeleton.named_children())

    def parted(self) -> Iterator[tuple[str, str]]:
        """Weights that the config ties and the file holds apart, with other values; each with what it is tied to."""
        for name, source in self._skeleton.all_tied_weights_keys.items():
            if name in self._plain and source in self._plain:
                ours, theirs = (self._readers[self._plain[each]]() for each in (name, source))
                if ours.shape == theirs.shape and not torch.equal(ours, theirs.to(ours.dtype)):
                    yield name, source

    def nf4(self, name: str) -> Nf4Reader | None:
        """The reader of a weight that the file holds in NF4."""
        reader = self._readers.get(self._plain.get(name, ""))
        return reader if isinstance(reader, Nf4Reader) else None

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


def is_harmless(skeleton: PreTrainedModel, name: str, cut_short: bool) -> bool:
    """Whether a tensor that the model has no place for computes nothing in it: buffers, other modalities, drafts."""
    known = [*HARMLESS, *(skeleton._keys_to_ignore_on_load_unexpected or ())]
    if any(re.search(pattern, name) for pattern in known):
        return True
    prefix = skeleton.base_model_prefix
    if {name, f"{prefix}.{name}"} & {buffer for buffer, _ in skeleton.named_buffers()}:
        return True
    kinds = set(skeleton._no_split_modules or ())
    blocks = [path.split(".") for path, module in skeleton.named_modules() if type(module).__name__ in kinds]
    lists = {path[-2] for path in blocks if len(path) > 1 and path[-1].isdigit()}
    numbered = re.search(rf"(?:^|\.)(?:{'|'.join(map(re.escape, lists))})\.(\d+)\.", name) if lists else None
    if numbered is None:
        return False
    config = skeleton.config.get_text_config()
    beyond = int(numbered[1]) - config.num_hidden_layers
    return beyond >= 0 and (cut_short or beyond < (getattr(config, "num_nextn_predict_layers", None) or 0))


def _count(names: Collection[str], one: str, more: str) -> str:
    return f"{len(names)} {one if len(names) == 1 else more}"


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
