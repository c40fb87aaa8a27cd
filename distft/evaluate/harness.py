"""Tasks of EleutherAI's lm-eval on a base and on what a run trained. The only file that knows that package."""

import importlib.util
import json
import re
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from distft.config.schema import Config
from distft.errors import ConfigError
from distft.run.weights import find_weights
from distft.runtime import log
from distft.runtime.env import Ranks

RESULT = "lm_eval.json"


def check(names: list[str], prompt: str | None, ensemble: list[str], ranks: Ranks) -> Iterator[str]:
    """What stands in the way. Imports neither torch nor lm-eval."""
    if importlib.util.find_spec("lm_eval") is None:
        yield "lm_eval: must have the package lm-eval, which is not installed; pip install 'distft[lm_eval]'"
    for file in filter(_is_file, names):
        if not Path(file).expanduser().is_file():
            yield f"lm_eval: must be names of lm-eval's tasks, or YAML files that are there, got {file}; check the path"
    if prompt is not None or ensemble:
        beside = "prompt" if prompt is not None else "ensemble"
        yield f"lm_eval: must stand alone, its tasks have prompts of their own, got {beside}= besides; remove one"
    if ranks.world_size > 1:
        yield f"lm_eval: must run as one process, got {ranks.world_size}; start it without torchrun or srun"


def measure(
    run: Path | None, config: Config, checkpoint: str | None, names: list[str], shots: list[int]
) -> dict[str, Any]:
    """Every task, by base and trained model, with each number of shots; prints a table, writes `lm_eval.json`.

    `names`: of lm-eval's tasks, or YAML files of one's own. One process. Raises ConfigError for tasks that lm-eval does
    not know.
    """
    log.start(0)
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from peft import PeftModel

    manager, tasks = _find(names)
    model, tokenizer = _load(run, config, checkpoint)
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    base.set_attn_implementation("sdpa" if base._supports_sdpa else "eager")  # its batches are padded, with masks
    # Switched off, an adapter that was started from the base leaves a base with a part missing.
    adapted = isinstance(model, PeftModel) and not config.adapter.traits.changes_base
    sides = {"base": model.disable_adapter} if adapted else {}
    if run is not None or not sides:
        sides[config.name] = nullcontext
    rows = []
    for side, switched in sides.items():
        for count in shots:
            with switched(), torch.no_grad():
                lm = HFLM(pretrained=base, tokenizer=tokenizer, batch_size=config.data.micro_batch)
                found = simple_evaluate(model=lm, tasks=tasks, num_fewshot=count, task_manager=manager)
            for task, numbers in found["results"].items():
                told = {key: value for key, value in numbers.items() if isinstance(value, int | float)}
                rows.append({"model": side, "shots": count, "task": task, **told})
    result = {"rows": rows, "time": time.time()}
    _show(rows)
    if run is not None:
        aside = run / f".{RESULT}"
        aside.write_text(json.dumps(result, indent=2, ensure_ascii=False), encoding="utf-8")
        aside.replace(run / RESULT)
        print(f"written   {run / RESULT}")
    return result


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _find(names: list[str]) -> tuple[Any, list[str]]:
    """What knows the tasks, and their names. Raises ConfigError for tasks that nobody knows."""
    from lm_eval.tasks import TaskManager

    files = {name: Path(name).expanduser() for name in names if _is_file(name)}
    own = [str(file.absolute().parent) for file in files.values()]
    manager = TaskManager(
        include_path=own or None, include_defaults=len(files) < len(names)
    )  # reading those takes long
    found = []
    for name in names:
        # The file may have tags of lm-eval's own, which a plain YAML reader refuses.
        text = files[name].read_text(encoding="utf-8") if name in files else ""
        told = re.search(r"^task:\s*(\S+)", text, re.MULTILINE)
        found.append(told[1] if told else name)
    if unknown := sorted(set(found) - set(manager.all_tasks)):
        raise ConfigError(
            f"lm_eval: must be names of lm-eval's tasks, or YAML files with a `task:`, got {', '.join(unknown)}; "
            "see lm-eval ls tasks"
        )
    return manager, found


def _load(run: Path | None, config: Config, checkpoint: str | None) -> tuple[Any, Any]:
    import torch

    from distft.model import load as loading
    from distft.model.tokenizer import load_tokenizer
    from distft.session.whole import load_trained, tokenizer_of

    if run is not None:
        trained = load_trained(run, config, find_weights(run, checkpoint))
        return trained.model, tokenizer_of(run, config)
    loaded = loading.load(
        config.model, config.adapter, seed=config.seed, device=torch.device("cpu"), shard=lambda block: None
    )
    return loaded.model, load_tokenizer(config.model, config.data.chat_template)


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from distft.tracking.console import number, visible

    table = Table("task", "model", "shots", "metric", "value", box=None, title="lm-eval")
    for row in rows:
        for name, value in row.items():
            if name not in ("model", "shots", "task") and "stderr" not in name:
                told = (row["task"], row["model"], str(row["shots"]), name.partition(",")[0], number(value, ".4f"))
                table.add_row(*map(visible, told))
    Console(highlight=False, markup=False).print(table)
