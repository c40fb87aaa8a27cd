"""What the schema says of its keys: which there are, what each may hold, which option each belongs to."""

import difflib
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

Fields = Mapping[str, FieldInfo]
"""The top-level keys a command knows: those of `Config` and its own."""

_PLAIN = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Any: "any value"}
_BOUNDS = {annotated_types.Gt: ("gt", ">"), annotated_types.Ge: ("ge", ">="), annotated_types.Lt: ("lt", "<")}
_PATTERNS = {"name": "at most 128 letters, digits and . _ = , + - (the first a letter or digit)"}


@dataclass(frozen=True)
class Known:
    """A key of the schema. `option`: the one that has it, of a section with options."""

    path: str
    field: FieldInfo
    option: str = ""


def models(annotation: Any) -> list[type[BaseModel]]:
    """Every model that stands in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models(part)]


def options(field: FieldInfo) -> dict[str, type[BaseModel]]:
    """The models that a section may be, by the value of its discriminator; {"": model} where there is one only."""
    if field.discriminator is None:
        only = field.annotation if isinstance(field.annotation, type) else None
        return {"": only} if only is not None and issubclass(only, BaseModel) else {}
    return {
        tag: model
        for model in models(field.annotation)
        for tag in get_args(model.model_fields[str(field.discriminator)].annotation)
    }


def known(fields: Fields) -> Iterator[Known]:
    """Every key of every section and option, in the schema's order."""
    for name, field in fields.items():
        sections = options(field)
        if not sections:
            yield Known(name, field)
        for option, model in sections.items():
            for key, inner in model.model_fields.items():
                yield Known(f"{name}.{key}", inner, option)


def nearest(word: str, candidates: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The candidate most like `word`, or None."""
    return next(iter(difflib.get_close_matches(word, list(candidates), n=1, cutoff=cutoff)), None)


def choices(annotation: Any) -> list[str]:
    """The words that a `Literal` in the annotation allows."""
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return [choice for part in get_args(annotation) for choice in choices(part)]


def takes_text_only(annotation: Any) -> bool:
    """Whether `123` is meant as text there, as in `name=123` or a revision made of digits."""
    if get_origin(annotation) is Annotated:
        return takes_text_only(get_args(annotation)[0])
    parts = [part for part in get_args(annotation) if part is not type(None)] or [annotation]
    return all(part is str for part in parts) if annotation is not str else True


def describe(annotation: Any, metadata: Iterable[Any] = (), name: str = "") -> str:
    """What a key may hold, in words: "a whole number > 0 or null"."""
    metadata = list(metadata)
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [part for extra in args[1:] for part in (extra.metadata if isinstance(extra, FieldInfo) else [extra])]
        return describe(args[0], [*inner, *metadata], name)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(part, metadata, name) for part in args)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args)) if len(args) > 1 else str(args[0])
    if annotation is type(None):
        return "null"
    if origin is tuple:
        return f"a list of {len(args)}, each {describe(args[0])}"
    if origin is list:
        return f"a list, each {describe(args[0])}"
    if origin is dict or annotation is dict:
        return "keys with values"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "{" + ", ".join(annotation.model_fields) + "}"
    return _plain(annotation, metadata, name)


def _plain(annotation: Any, metadata: list[Any], name: str) -> str:
    bounds = [
        f"{sign} {getattr(part, attribute):g}"
        for part in metadata
        for kind, (attribute, sign) in _BOUNDS.items()
        if isinstance(part, kind)
    ]
    pattern = next((part.pattern for part in metadata if getattr(part, "pattern", None)), None)
    if pattern:
        return _PATTERNS.get(name, f"text that matches {pattern}")
    return " ".join(
        [_PLAIN.get(annotation, getattr(annotation, "__name__", str(annotation))), " and ".join(bounds)]
    ).strip()


def show(value: Any) -> str:
    """A value as it is written on the command line and in YAML, shortened."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        text = "[" + ",".join(show(item) for item in value) + "]"
    elif isinstance(value, dict):
        text = "{" + ", ".join(f"{key}: {show(item)}" for key, item in value.items()) + "}"
    else:
        text = f"{value:g}" if isinstance(value, float) else str(value) or "''"
    return text if len(text) <= 80 else text[:77] + "..."
