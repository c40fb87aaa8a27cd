"""Validates a composed config section by section, and words every problem as `key: what must hold, got value; fix`."""

import copy
from collections.abc import Sequence
from typing import Annotated, Any, cast

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from distft.config.keys import Fields, choices, describe, known, models, nearest, options, show

Path = tuple[str | int, ...]


def validate(raw: dict[str, Any], fields: Fields) -> tuple[dict[str, Any], list[str]]:
    """The values of the sections that are usable, by name, and a sentence for each problem.

    A section whose only fault is an unknown key counts as usable: the cross-checks can then say more at once.
    """
    problems = [_unknown(fields, (name,), raw, value) for name, value in raw.items() if name not in fields]
    valid: dict[str, Any] = {}
    for name, field in fields.items():
        if name not in raw and not field.is_required():
            valid[name] = field.get_default(call_default_factory=True)
        elif name not in raw:
            problems.append(_missing(name, field))
        else:
            section, sentences = _validate_section(name, field, raw, fields)
            valid.update(section)
            problems += sentences
    return valid, problems


def _validate_section(
    name: str, field: FieldInfo, raw: dict[str, Any], fields: Fields
) -> tuple[dict[str, Any], list[str]]:
    adapter: TypeAdapter[Any] = TypeAdapter(cast(Any, Annotated[field.annotation, field]))
    try:
        return {name: adapter.validate_python(raw[name])}, []
    except ValidationError as error:
        errors = error.errors(include_url=False)
    trimmed = copy.deepcopy(raw[name])
    for problem in errors:
        if problem["type"] == "extra_forbidden":
            _remove(trimmed, _real_path(trimmed, problem["loc"], problem["type"]))
    try:
        usable = {name: adapter.validate_python(trimmed)}
    except ValidationError:
        usable = {}
    return usable, _sentences(name, field, raw, errors, fields)


def _sentences(name: str, field: FieldInfo, raw: dict[str, Any], errors: Sequence[Any], fields: Fields) -> list[str]:
    """One sentence a fault: pydantic reports each branch of a union, the one that got furthest is what was meant."""
    paths = [(name, *_real_path(raw[name], error["loc"], error["type"])) for error in errors]
    deepest: dict[Path, int] = {}
    for path in paths:
        deepest[path[:2]] = max(deepest.get(path[:2], 0), len(path))
    kept = [(path, error) for path, error in zip(paths, errors, strict=True) if len(path) == deepest[path[:2]]]
    return list(dict.fromkeys(_sentence(path, error, field, raw, fields) for path, error in kept))


def _sentence(path: Path, error: Any, field: FieldInfo, raw: dict[str, Any], fields: Fields) -> str:
    name, kind = str(path[0]), error["type"]
    if kind == "extra_forbidden":
        return _unknown(fields, path, raw, error["input"])
    if len(path) == 1 and options(field):
        if kind.startswith("union_tag"):
            return _wrong_option(name, field, raw[name])
        return f"{name}: must be a section with keys, got {show(raw[name])}; choose an option: {name}=OPTION"
    leaf = _leaf(path, field, raw)
    if kind == "missing":
        return _missing(_dotted(path), leaf)
    if len(path) > 2 and not _in_nested_model(path, field, raw):
        path = path[:2] if options(field) else path[:1]
    return _wrong_value(_dotted(path), leaf, _value_at(raw, path))


def _wrong_value(key: str, field: FieldInfo, value: Any) -> str:
    allowed = choices(field.annotation)
    near = nearest(str(value), allowed) if allowed else None
    default = field.get_default(call_default_factory=True)
    words = describe(field.annotation, field.metadata, key.split(".")[-1])
    if near:
        fix = f"did you mean {key}={near}?"
    elif str(value).lower() == "none" and words.endswith("or null"):
        fix = f"did you mean {key}=null?"
    elif not field.is_required() and default is not None:
        fix = f"the default is {key}={show(default)}"
    elif allowed:
        fix = f"write {key}={allowed[0]}, for example"
    else:
        fix = f"write {key}=VALUE" + ("" if field.is_required() else ", or leave it out")
    return f"{key}: must be {words}, got {show(value)}; {fix}"


def _missing(key: str, field: FieldInfo) -> str:
    if options(field):
        return f"{key}: must be set; choose an option: {key}=OPTION"
    hint = "choose an experiment (+exp=llama_lora) or give name=MY_RUN" if key == "name" else f"give {key}=VALUE"
    return f"{key}: must be set, to {describe(field.annotation, field.metadata, key.split('.')[-1])}; {hint}"


def _wrong_option(name: str, field: FieldInfo, section: Any) -> str:
    tag, allowed = str(field.discriminator), list(options(field))
    value = section.get(tag) if isinstance(section, dict) else section
    near = nearest(str(value), allowed)
    got = f"got {show(value)}" if value is not None else "and is not set"
    fix = f"did you mean {name}={near}?" if near else f"choose an option: {name}={allowed[0]}"
    return f"{name}.{tag}: must be one of {', '.join(allowed)}, {got}; {fix}"


def _unknown(fields: Fields, path: Path, raw: dict[str, Any], value: Any) -> str:
    """A key that nothing knows: who else has it, or which one is spelt like it."""
    key, last = _dotted(path), str(path[-1])
    if len(path) == 1:
        if last == "exp":
            return "exp: must not be a section; an experiment file starts with the line `# @package _global_`"
        return _no_such_key(key, last, [*fields], fields, "keys and sections")
    section = _section_model(fields[str(path[0])], raw[str(path[0])])
    if len(path) > 2:
        leaf = section.model_fields[str(path[1])] if section else fields[str(path[0])]
        nested = [inner for model in models(leaf.annotation) for inner in model.model_fields]
        near = nearest(last, nested)
        return (
            f"{key}: no such key, got {show(value)}; "
            + (f"did you mean {near}? " if near else "")
            + f"keys: {', '.join(nested)}"
        )
    owners = [entry.option for entry in known(fields) if entry.path == key and entry.option]
    if owners and section is not None:
        tag = str(fields[str(path[0])].discriminator)
        now = raw[str(path[0])].get(tag)
        wanted = " or ".join(f"{path[0]}={owner}" for owner in owners[:3])
        fix = f"remove it with ~{key}, or choose {wanted}"
        return f"{key}: belongs to {wanted}, not to {path[0]}={now}, got {show(value)}; {fix}"
    return _no_such_key(
        key, last, list(section.model_fields) if section else [], fields, f"keys of {path[0]}", f"{path[0]}."
    )


def _no_such_key(key: str, last: str, here: list[str], fields: Fields, label: str, prefix: str = "") -> str:
    """Same section first, then the same name in another section, then a name spelt like it anywhere."""
    elsewhere = {entry.path.split(".")[-1]: entry.path for entry in reversed(list(known(fields)))}
    near = nearest(last, here, 0.7)
    if near is not None:
        suggestion = prefix + near
    elif last in elsewhere:
        suggestion = elsewhere[last]
    else:
        other = nearest(last, elsewhere, 0.7)
        suggestion = elsewhere[other] if other else ""
    hint = f"did you mean {suggestion}? " if suggestion else ""
    return f"{key}: no such key; {hint}{label}: {', '.join(here)}"


def _section_model(field: FieldInfo, section: Any) -> type[BaseModel] | None:
    by_tag = options(field)
    if "" in by_tag:
        return by_tag[""]
    tag = section.get(str(field.discriminator)) if isinstance(section, dict) else None
    return by_tag.get(str(tag))


def _leaf(path: Path, field: FieldInfo, raw: dict[str, Any]) -> FieldInfo:
    """The field that a path ends in, or the one that holds the list or table it ends in."""
    section = _section_model(field, raw[str(path[0])])
    leaf = section.model_fields[str(path[1])] if section and len(path) > 1 else field
    for model in models(leaf.annotation) if len(path) > 2 else []:
        leaf = model.model_fields.get(str(path[-1]), leaf)
    return leaf


def _in_nested_model(path: Path, field: FieldInfo, raw: dict[str, Any]) -> bool:
    return _leaf(path, field, raw) is not _leaf(path[:2], field, raw)


def _real_path(raw: Any, loc: tuple[str | int, ...], kind: str) -> Path:
    """pydantic's location without the labels of union branches that it mixes in."""
    path: list[str | int] = []
    for index, part in enumerate(loc):
        is_last = index == len(loc) - 1
        if isinstance(raw, dict) and (part in raw or (is_last and kind == "missing")):
            path.append(part)
            raw = raw.get(part)
        elif isinstance(raw, list | tuple) and isinstance(part, int) and part < len(raw):
            path.append(part)
            raw = raw[part]
    return tuple(path)


def _value_at(raw: Any, path: Path) -> Any:
    for part in path:
        raw = raw[part]
    return raw


def _remove(raw: Any, path: Path) -> None:
    if path:
        _value_at(raw, path[:-1]).pop(path[-1], None)


def _dotted(path: Path) -> str:
    return ".".join(map(str, path))
