"""What of a config may change between two starts of one run."""

from typing import Any, Literal

from distft.config.keys import show
from distft.config.schema import Config

Rule = Literal["free", "warned", "refused"]

RULES: dict[str, tuple[Rule, str]] = {
    "name": ("free", "the folder is what names a run; it may be moved"),
    "run_root": ("free", "likewise"),
    "seed": ("refused", "it orders the data and draws the dropout"),
    "steps": ("free", "the schedule stretches with it"),
    "epochs": ("free", "likewise"),
    "resume": ("free", "it says how to start, not what to train"),
    "task": ("refused", "its targets and its head are what was trained"),
    "model": ("refused", "the adapter fits one base only"),
    "model.source": ("free", "a base may move; its content is compared"),
    "model.compute_dtype": ("warned", "losses differ in their last digits"),
    "model.gradient_checkpointing": ("free", "it trades time for memory"),
    "model.attention": ("free", "it is another way to compute the same"),
    "model.trust_remote_code": ("free", "the revision is pinned"),
    "adapter": ("refused", "the saved tensors have its shape"),
    "adapter.dropout": ("warned", "it is not in the saved tensors"),
    "adapter.b_lr_ratio": ("warned", "it takes effect from the next step on"),
    "adapter.unfreeze_every": ("warned", "it takes effect from the next step on"),
    "engine": ("free", "checkpoints know no engine"),
    "data": ("refused", "the position in the data would mean other rows"),
    "data.micro_batch": ("free", "the rows of a step are the same"),
    "data.num_workers": ("free", "it is only a speed"),
    "data.cache_dir": ("free", "it is only a place"),
    "optim": ("warned", "it takes effect from the next step on"),
    "optim.name": ("refused", "another optimizer has other states"),
    "regularisation": ("warned", "it takes effect from the next step on"),
    "checkpoint": ("free", "it says when to save"),
    "evaluation": ("free", "it says when to measure"),
    "tracking": ("free", "metrics.jsonl is the truth"),
    "cluster": ("free", "it says where to run"),
    "runtime": ("free", "it watches over the run"),
}
"""By key or section, the longest match counts: whether a change is taken, taken with a warning, or refused; and why."""


def check_resume(saved: dict[str, Any], config: Config) -> tuple[list[str], list[str]]:
    """Problems and warnings from what changed since `saved`, the run's `config.yaml`.

    Keys that only one side has are passed over: they came or went with a section's kind, which is itself compared, or
    with the version of distft.
    """
    before, now = _flat(saved), _flat(config.model_dump(mode="json"))
    problems: list[str] = []
    warnings: list[str] = []
    for key in now:
        if key not in before or _what(key, before[key]) == _what(key, now[key]):
            continue
        rule, why = rule_of(key)
        if rule == "refused":
            setting = key.removesuffix(".name").removesuffix(".method")
            problems.append(
                f"{key}: must stay what the run began with, {show(before[key])}, got {show(now[key])}: {why}; "
                f"set {setting}={show(before[key])}, or give another name= (resume=never makes sure it is new)"
            )
        elif rule == "warned":
            warnings.append(f"{key}: changed from {show(before[key])} to {show(now[key])}; {why}")
        elif key in ("steps", "epochs") and config.optim.schedule != "constant":
            warnings.append(
                f"{key}: changed from {show(before[key])} to {show(now[key])}; "
                f"the {config.optim.schedule} schedule now ends at the new last step"
            )
    return problems, warnings


def _what(key: str, value: Any) -> Any:
    """A key's value without where things lie: data and a teacher may move, and their content is compared."""
    if key in ("data.train", "data.eval", "data.replay") and value is not None:
        listed = [value] if isinstance(value, str) else value
        return [{} if isinstance(each, str) else _told_of(each) for each in listed]
    if key == "task.teacher" and isinstance(value, dict):
        return {name: each for name, each in value.items() if name != "source"}
    return value


def _told_of(source: dict[str, Any]) -> dict[str, Any]:
    usual = {"path": source["path"], "weight": 1.0, "split": "train", "subset": None, "format": None}
    return {name: value for name, value in source.items() if name != "path" and value != usual[name]}


def rule_of(key: str) -> tuple[Rule, str]:
    """The rule for a key: its own, else its section's; a key without one is refused."""
    return RULES.get(key) or RULES.get(key.partition(".")[0]) or ("refused", "nothing is known of it")


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """One level of sections, as the schema has it; what stands deeper is one value."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat.update(
            {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
        )
    return flat
