"""The text that `--help` prints, made from the groups in `conf/` and the docstrings of the schema."""

from collections.abc import Mapping
from pathlib import Path

from distft.config.keys import Fields, known, show

_WIDTH = 30


def help_text(program: str, fields: Fields, groups: Mapping[str, Mapping[str, Path]], run: bool = False) -> str:
    """Usage, experiments with their headers, groups with their options, every key with its default and its line."""
    first = "run=runs/NAME" if run else "+exp=NAME"
    lines = [f"python -m {program} {first} [group=option ...] [key=value ...]", ""]
    lines += ["  ~key removes a key; [a,b] is a list; null is no value.", ""]
    if not run:
        lines.append("experiments")
        lines += [_row(f"+exp={name}", header(file)) for name, file in groups.get("exp", {}).items()]
        lines.append("")
    lines.append("groups")
    for group, options in groups.items():
        if group != "exp":
            lines.append(_row(group, " ".join(options)))
    lines += ["", "keys (default)"]
    lines += [_row(*row) for row in _key_rows(fields)]
    lines += ["", "options"]
    lines.append(_row("--cfg job", "print the composed config, run nothing"))
    lines.append(_row("--config-dir DIR", "a folder with your own groups and experiments, laid out as conf/ is"))
    return "\n".join(lines)


def header(file: Path) -> str:
    """What a config file says of itself: its first comment that is not Hydra's package line."""
    comments = [line[1:].strip() for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return next((line for line in comments if line and not line.startswith("@package")), "")


def _key_rows(fields: Fields) -> list[tuple[str, str]]:
    rows: dict[str, tuple[list[str], str, str]] = {}
    for entry in known(fields):
        default = "" if entry.field.is_required() else f" ({show(entry.field.get_default(call_default_factory=True))})"
        owners, _, doc = rows.get(entry.path, ([], "", ""))
        doc = doc or " ".join((entry.field.description or "").split())
        rows[entry.path] = ([*owners, entry.option] if entry.option else owners, default, doc)
    return [
        (path + default, f"[{_some(owners)}] {doc}".strip() if owners else doc)
        for path, (owners, default, doc) in rows.items()
    ]


def _some(owners: list[str]) -> str:
    return ", ".join(owners if len(owners) <= 4 else [*owners[:2], f"{len(owners) - 2} more"])


def _row(left: str, right: str) -> str:
    return f"  {left:<{_WIDTH}}  {right}".rstrip()
