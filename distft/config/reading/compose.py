"""From the command line to a `Config`. The only file that knows Hydra: its parser and compose API, not its `main`."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distft.config.checks.check import check
from distft.config.keys import Fields, known, nearest, show, takes_text_only
from distft.config.reading.folders import conf_dir, group_options, run_folder
from distft.config.reading.help import help_text
from distft.config.reading.refuse import looks_secret, secret, take_refused
from distft.config.reading.validate import validate
from distft.config.schema import Config, Section
from distft.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

Own = TypeVar("Own", bound=Section)


class Nothing(Section):
    """A command without keys of its own."""


@dataclass
class CommandLine:
    """What stands after `python -m PROGRAM`, sorted but not yet applied."""

    groups: list["Override"] = field(default_factory=list)
    values: list["Override"] = field(default_factory=list)
    config_dirs: list[Path] = field(default_factory=list)
    show: Literal["", "help", "job"] = ""
    problems: list[str] = field(default_factory=list)
    lost: bool = False  # its experiment is not known


def load(argv: Sequence[str], *, program: str, world_size: int | None = None, here: bool = True) -> Config:
    """Compose, validate and cross-check a run.

    `world_size`: ranks the config must fit, None where that is not known yet. `here`: this process is to do the
    training, so files, packages and a GPU that it needs are looked for too. Prints and exits 0 for `--help` and
    `--cfg job`. Raises `ConfigError` with every problem at once. Any rank may call it; no rank waits for another.
    """
    return load_with(argv, Nothing, program=program, world_size=world_size, here=here)[0]


def load_with(
    argv: Sequence[str], own: type[Own], *, program: str, world_size: int | None = None, here: bool = True
) -> tuple[Config, Own]:
    """`load` for a command with keys of its own: the fields of `own` stand beside those of `Config`."""
    fields: Fields = {**Config.model_fields, **own.model_fields}
    line = _read(argv, program, fields)
    config = _compose(_check_options(line), line)
    return _finish(config, line, own, world_size=world_size, here=here)


def load_run(
    argv: Sequence[str], own: type[Own], *, program: str, world_size: int | None = None, here: bool = False
) -> tuple[Path, Config, Own]:
    """The config of the run that `run=FOLDER` names, with overrides, for commands that work on a run.

    A group override (`data=other`) replaces the whole section by that option; a value override changes one key.
    Returns the run's folder, its config, and the command's own keys.
    """
    fields: Fields = {**Config.model_fields, **own.model_fields}
    line = _read(argv, program, fields, run=True)
    named = [override.value() for override in line.values if override.key_or_group == "run"]
    line.values = [override for override in line.values if override.key_or_group != "run"]
    folder = run_folder(str(named[-1]) if named else None, line.problems)
    try:
        config = OmegaConf.load(folder / "config.yaml")
    except (OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError([*line.problems, f"run: cannot read {folder / 'config.yaml'}: {error}"]) from error
    if not isinstance(config, DictConfig):
        raise ConfigError([*line.problems, f"run: must hold a config, got {folder / 'config.yaml'} without keys"])
    for override in [override for override in line.groups if override.key_or_group not in Config.model_fields]:
        line.problems.append(f"{override.key_or_group}: must not be given with run=, whose config is kept; remove it")
        line.groups.remove(override)
    choices = _check_options(line)
    replaced = {choice.split("=")[0].lstrip("+~") for choice in choices}
    composed = _compose(choices, line) if choices else OmegaConf.create()
    for name in replaced & set(Config.model_fields):
        config[name] = composed.get(name)
    return folder, *_finish(config, line, own, world_size=world_size, here=here)


def given(words: Sequence[str]) -> dict[str, "Override"]:
    """What a command line sets, by key, the last of each; deletions and what cannot be read are for `load` to judge."""
    found = {}
    for word in words:
        override = _parsed(word)
        if override is not None and override.key_or_group and not override.is_delete():
            found[override.key_or_group] = override
    return found


def expand_sweep(words: Sequence[str]) -> list[tuple[list[str], list[str]]]:
    """The points of a sweep in Hydra's override grammar: `a=1,2 b=range(3)` has six.

    For each its own overrides, one for each key that is swept, and all its words. Raises ConfigError where nothing is
    swept. What cannot be read is left in the words, for `load` to report.
    """
    axes: list[list[str]] = []
    fixed: list[str] = []
    for word in words:
        override = _parsed(word)
        if override is not None and override.is_sweep_override():
            axes.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        else:
            fixed.append(word)
    if not axes:
        raise ConfigError("--multirun: must have a key with several values, got none; give optim.lr=1e-4,2e-4")
    return [(list(point), [*fixed, *point]) for point in itertools.product(*axes)]


def _read(argv: Sequence[str], program: str, fields: Fields, run: bool = False) -> CommandLine:
    """Sort the words of a command line; answers `--help` itself."""
    line = CommandLine()
    words = _read_flags(argv, line)
    groups = group_options([conf_dir(), *line.config_dirs])
    if line.show == "help":
        print(help_text(program, fields, groups, run=run))
        raise SystemExit(0)
    for word in words:
        override = _parsed(word)
        if override is None:
            line.problems.append(_unreadable(word, groups))
            continue
        problem = _refused(override, word) if override.key_or_group else _unreadable(word, groups)
        if problem:
            line.problems.append(problem)
        elif override.key_or_group in groups:
            line.groups.append(override)
        else:
            line.values.append(override)
    return line


def _parsed(word: str) -> "Override | None":
    """By Hydra's grammar; None: it cannot be read."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None


def _read_flags(argv: Sequence[str], line: CommandLine) -> list[str]:
    """Take `--help`, `--cfg job` and `--config-dir DIR` out of the words."""
    words: list[str] = []
    rest = iter(argv)
    for word in rest:
        flag, _, attached = word.partition("=") if word.startswith("-") else (word, "", "")
        if flag in ("--help", "-h"):
            line.show = "help"
        elif flag in ("--cfg", "-c"):
            line.show = line.show or "job"
            wanted = attached or next(rest, "")
            if wanted != "job":
                line.problems.append(f"--cfg: must be job, got {wanted or 'nothing'}; write --cfg job")
        elif flag in ("--config-dir", "-cd"):
            wanted = attached or next(rest, "")
            folder = Path(wanted).expanduser().absolute()
            if wanted and folder.is_dir():
                line.config_dirs.append(folder)
            else:
                got = folder if wanted else "nothing"
                line.problems.append(f"--config-dir: must be a folder that exists, got {got}; write --config-dir DIR")
        elif flag in ("--multirun", "-m"):
            line.problems.append("--multirun: belongs to python -m launch; run that, or give one value a key")
        elif flag.startswith("-"):
            line.problems.append(f"{flag}: no such option; options: --help, --cfg job, --config-dir DIR")
        else:
            words.append(word)
    return words


def _unreadable(word: str, groups: dict[str, dict[str, Path]]) -> str:
    if looks_secret(word.partition("=")[0]):
        return secret(word.partition("=")[0])
    if word in groups.get("exp", {}):
        return f"{word}: must read key=value; did you mean +exp={word}?"
    return f"{word or repr(word)}: must read key=value; quote a value with special characters, as in 'key=\"a (b)\"'"


def _refused(override: "Override", word: str) -> str | None:
    key = override.key_or_group
    if looks_secret(key):
        return secret(key)
    if override.is_sweep_override():
        got = word.partition("=")[2]
        return f"{key}: must be one value, got {got}; a list is [a,b], a sweep is python -m launch --multirun"
    if override.is_hydra_override() or key == "hydra":
        return f"{key}: Hydra's own keys have no effect here; remove it (--config-dir DIR adds a folder of configs)"
    return None


def _check_options(line: CommandLine) -> list[str]:
    """The group overrides as Hydra wants them. A misspelt option is reported and the nearest taken, to see on."""
    folders = [conf_dir(), *line.config_dirs]
    groups = group_options(folders)
    choices: dict[str, str] = {}
    for override in line.groups:
        group = override.key_or_group
        slot = group + (f"@{override.package}" if override.package else "")
        if override.is_delete():
            choices[slot] = f"~{slot}"
            continue
        names = _option_names(override)
        for index, name in enumerate(names):
            if not any((folder / group / f"{name}.yaml").is_file() for folder in folders):
                near = nearest(name, groups[group])
                hint = f"did you mean {near}? " if near else ""
                listed = ", ".join(sorted(groups[group]))
                line.problems.append(f"{group}={name}: no such option; {hint}options: {listed}")
                names[index] = near or ""
        sign = "" if group in Config.model_fields else "+"
        if sign and slot in choices:
            line.problems.append(f"{group}: must be given once, got it twice; write +{group}=[a,b] for both")
        elif all(names):
            choices[slot] = f"{sign}{slot}={names[0] if len(names) == 1 else '[' + ','.join(names) + ']'}"
        elif group == "exp":
            line.lost = True
    if line.lost:
        # Without its experiment every key would be missing: that is one problem, not five.
        raise ConfigError(line.problems)
    return list(choices.values())


def _option_names(override: "Override") -> list[str]:
    value = override.value()
    if isinstance(value, list):
        return [str(name) for name in value]
    return [value if isinstance(value, str) else override.get_value_string()]


def _compose(choices: list[str], line: CommandLine) -> DictConfig:
    from hydra import compose, initialize_config_dir
    from hydra.core.override_parser.types import Quote, QuotedString
    from hydra.errors import HydraException

    folders = [QuotedString(f"file://{folder}", Quote.single).with_quotes() for folder in line.config_dirs]
    search = [f"hydra.searchpath=[{','.join(folders)}]"] if folders else []
    try:
        with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3", job_name="distft"):
            config = compose("config", overrides=[*search, *choices])
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError, UnicodeError) as error:
        text = " ".join(str(error.__cause__ or error).split()).partition(" Config search path")[0]
        chosen = " ".join(choices) or "conf"
        raise ConfigError([*line.problems, f"{chosen}: cannot be composed: {text}; correct that file"]) from error
    OmegaConf.set_struct(config, False)
    return config


def _finish(
    config: DictConfig, line: CommandLine, own: type[Own], *, world_size: int | None, here: bool
) -> tuple[Config, Own]:
    """Values, then validation, then the checks between sections."""
    fields: Fields = {**Config.model_fields, **own.model_fields}
    for override in line.values:
        _apply(config, override, fields, line.problems)
    if line.show == "job" and not line.problems:
        print(OmegaConf.to_yaml(config), end="")
        raise SystemExit(0)
    try:
        raw = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "config"
        raise ConfigError(
            [*line.problems, f"{key}: cannot be resolved: {str(error).splitlines()[0]}; write the value itself"]
        ) from error
    assert isinstance(raw, dict)
    tree = {str(name): value for name, value in raw.items()}
    refused = list(take_refused(tree))
    valid, wrong = validate(tree, fields)
    crossed = check(valid, world_size=world_size, here=here)
    problems = list(dict.fromkeys([*line.problems, *refused, *wrong, *crossed]))
    if problems:
        raise ConfigError(problems)
    return (
        Config.model_validate({name: valid[name] for name in Config.model_fields}),
        own.model_validate({name: valid[name] for name in own.model_fields}),
    )


def _apply(config: DictConfig, override: "Override", fields: Fields, problems: list[str]) -> None:
    """Set or delete one key, whether or not it is there: the schema judges it afterwards."""
    key, value = override.key_or_group, override.value()
    if override.is_delete():
        parent, _, last = key.rpartition(".")
        node = OmegaConf.select(config, parent) if parent else config
        if not isinstance(node, DictConfig) or last not in node:
            problems.append(f"~{key}: must name a key that is there; remove it")
            return
        del node[last]
        return
    leaf = next((entry.field for entry in known(fields) if entry.path == key), None)
    if leaf is not None and isinstance(value, int | float) and takes_text_only(leaf.annotation):
        value = override.get_value_string()
    try:
        now = OmegaConf.select(config, key)
        OmegaConf.update(config, key, value, merge=isinstance(now, DictConfig), force_add=True)
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        problems.append(f"{key}: cannot be set to {show(value)}: {str(error).splitlines()[0]}; write {key}=VALUE")
