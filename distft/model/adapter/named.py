"""Whether the modules and layers that an adapter's keys name are in the model: PEFT is content where one of them is."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from transformers import PreTrainedModel

from distft.config import schema
from distft.config.keys import nearest
from distft.errors import ConfigError


def require_named(model: PreTrainedModel, config: schema.Lora | schema.Peft) -> None:
    """Raises ConfigError with every entry of `config` that matches nothing in `model`, as PEFT matches it."""
    modules = [name for name, _ in model.named_modules() if name]
    if problems := [*_modules(modules, config), *_within_options(model, modules, config.options)]:
        raise ConfigError(problems)


def require_suffixes(entries: Iterable[str], names: Iterable[str], key: str) -> None:
    """Raises ConfigError with every entry of `key` that none of `names` ends in."""
    if problems := list(_unmatched(key, entries, list(names), _is_suffix)):
        raise ConfigError(problems)


def _modules(modules: list[str], config: schema.Lora | schema.Peft) -> Iterator[str]:
    if isinstance(config.targets, list):
        yield from _unmatched("adapter.targets", config.targets, modules, _is_suffix)
    yield from _unmatched(
        "adapter.modules_to_save", config.modules_to_save, modules, lambda entry, name: name.endswith(entry)
    )


def _within_options(model: PreTrainedModel, modules: list[str], options: dict[str, Any]) -> Iterator[str]:
    parameters = [name for name, _ in model.named_parameters()]
    for name, value in options.items():
        if value is None:
            continue
        key = f"adapter.options.{name}"
        entries: list[Any] = list(value) if isinstance(value, list | tuple | set | dict) else [value]
        if name == "target_parameters":
            yield from _unmatched(key, entries, parameters, _is_suffix)
        elif name in ("exclude_modules", "feedforward_modules"):
            of_text = isinstance(value, str)
            yield from _unmatched(key, entries, modules, _is_whole if of_text else _is_suffix)
        elif name == "layers_pattern":
            lists = sorted({part for path in modules for part in re.findall(r"([^.]+)\.\d+(?:\.|$)", path)})
            yield from _unmatched(key, entries, lists, lambda entry, name: entry == name)
        elif name == "layers_to_transform":
            numbers = sorted({int(part) for path in modules for part in path.split(".") if part.isdigit()})
            if absent := [entry for entry in entries if entry not in numbers]:
                yield (
                    f"{key}: every entry must be the number of a layer, 0 to {numbers[-1]}, got {absent}; leave it out"
                )
        elif name.endswith("_pattern") and isinstance(value, dict):
            of_experts = list(dict.fromkeys([*modules, *parameters]))
            yield from _unmatched(key, entries, of_experts, _is_pattern)
        elif name in ("trainable_token_indices", "token_indices"):
            if isinstance(value, dict):
                yield from _unmatched(key, value, modules, _is_suffix)
            yield from _tokens(model, key, value)


def _tokens(model: PreTrainedModel, key: str, value: Any) -> Iterator[str]:
    rows = model.get_input_embeddings().weight.shape[0]
    indices = [each for ids in value.values() for each in ids] if isinstance(value, dict) else value or []
    if beyond := [index for index in indices if not 0 <= index < rows]:
        yield f"{key}: every token must have a row in the embedding of {rows:,}, got {beyond[:5]}; leave it out"


def _unmatched(
    key: str, entries: Iterable[str], names: list[str], matches: Callable[[str, str], bool]
) -> Iterator[str]:
    for entry in entries:
        try:
            found = any(matches(entry, name) for name in names)
        except re.error as error:
            yield f"{key}: every entry must be a regular expression, got {entry} ({error}); correct it"
            continue
        if not found:
            last = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
            known = [name for name in last if not name.isdigit()]
            near = nearest(entry, [*known, *names])
            hint = f"did you mean {near}?" if near else f"it has {', '.join(known[:12])}"
            yield f"{key}: every entry must name something in the model, got {entry}, which matches nothing; {hint}"


def _is_suffix(entry: str, name: str) -> bool:
    return name == entry or name.endswith(f".{entry}")


def _is_whole(entry: str, name: str) -> bool:
    return re.fullmatch(entry, name) is not None


def _is_pattern(entry: str, name: str) -> bool:
    return re.match(rf"(.*\.)?({entry})$", name) is not None
