"""python -m tests.config.peft_table: writes distft/config/sections/peft_table.py from the installed PEFT."""

import dataclasses
import enum
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

PLACE = Path(__file__).parents[2] / "distft" / "config" / "sections" / "peft_table.py"
OURS = {"target_modules", "modules_to_save"}
"""What has a key of its own in the schema, besides what every PEFT config has."""

HEAD = '''"""PEFT's methods and the options of each, by type: what a config is checked against before torch is imported.

Made by `python -m tests.config.peft_table`; a test compares it with the installed PEFT.
"""

from typing import Any, Literal

VERSION = "{version}"

# fmt: off
PeftMethod = Literal[
{names}
]
"""Every method of PEFT but LoRA, which has a section of its own."""

OPTIONS: dict[str, dict[str, Any]] = {{
{methods}}}
"""By method: what PEFT's config class of it takes, besides the targets and the modules to save."""
'''


def text() -> str:
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    by_name = {kind.value.lower(): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    names = _lines((f'"{name}"' for name in sorted(by_name) if name != "lora"), indent=4)
    methods = ""
    for name, config in sorted(by_name.items()):
        lines = _lines((f'"{key}": {kind}' for key, kind in options(config).items()), indent=8)
        methods += f'    "{name}": {{\n{lines}\n    }},\n'
    return HEAD.format(version=peft.__version__, names=names, methods=methods)


def _lines(entries: Iterable[str], indent: int) -> str:
    """As many entries a line as fit."""
    lines = [""]
    for entry in entries:
        if len(lines[-1]) + len(entry) + 2 > 120 - indent:
            lines.append("")
        lines[-1] += f" {entry}," if lines[-1] else f"{entry},"
    return "\n".join(" " * indent + line for line in lines)


def options(config: type) -> dict[str, str]:
    """Name and type, as Python, of each field that can be written in YAML."""
    from peft import PeftConfig

    hints, every = get_type_hints(config), {field.name for field in dataclasses.fields(PeftConfig)}
    found = {}
    for field in dataclasses.fields(config):
        if field.name in every | OURS:
            continue
        parts = _parts(hints[field.name])
        if field.default is None and "None" not in parts:
            parts.append("None")
        if parts and parts != ["None"]:
            found[field.name] = " | ".join(sorted(dict.fromkeys(parts), key=lambda part: part == "None"))
    return found


def _parts(hint: Any) -> list[str]:
    """The alternatives of a type; classes of PEFT's own cannot be written in YAML and are left out."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        known = any(isinstance(arg, type) and issubclass(arg, enum.Enum) for arg in args)  # spelt as text
        return [part for arg in args if not (known and arg is str) for part in _parts(arg)]
    if origin is Literal:
        return [f"Literal[{', '.join(_quoted(arg) for arg in args)}]"]
    if origin is list or hint is list:
        return [f"list[{' | '.join(_parts(args[0]))}]" if args else "list[Any]"]
    if origin is tuple:
        return [f"tuple[{', '.join(' | '.join(_parts(arg)) for arg in args)}]"]
    if origin is dict or hint is dict:
        return ["dict[str, Any]"]
    if hint is type(None):
        return ["None"]
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return [f"Literal[{', '.join(_quoted(str(member.value)) for member in hint)}]"]
    return [hint.__name__] if hint in (bool, int, float, str) else []


def _quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


if __name__ == "__main__":
    PLACE.write_text(text(), encoding="utf-8")
