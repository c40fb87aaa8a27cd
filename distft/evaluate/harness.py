"""Tasks of EleutherAI's lm-eval on a base and on what a run trained. The only file that knows that package."""

import re
from contextlib import nullcontext
from pathlib import Path

import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from distft.config.schema import Config
from distft.errors import ConfigError
from distft.evaluate import tables
from distft.evaluate.results import LmEval, Measurement
from distft.model import load as loading
from distft.model.tokenizer import load_tokenizer
from distft.run.weights import find_weights
from distft.session.whole import load_trained, tokenizer_of


def measure(run: Path | None, config: Config, checkpoint: str | None, names: list[str], shots: list[int]) -> LmEval:
    """Every task, by base and trained model, with each number of shots; prints a table, writes `lm_eval.json`.

    `names`: of lm-eval's tasks, or YAML files of one's own. One process. Raises ConfigError for tasks that lm-eval does
    not know.
    """
    manager, tasks = _find(names)
    model, tokenizer = _load(run, config, checkpoint)
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    base.set_attn_implementation("sdpa" if base._supports_sdpa else "eager")  # its batches are padded, with masks
    # Switched off, an adapter that was started from the base leaves a base with a part missing.
    adapted = isinstance(model, PeftModel) and not config.adapter.traits.changes_base
    models = {"base": model.disable_adapter} if adapted else {}
    if run is not None or not models:
        models[config.name] = nullcontext
    rows = []
    for name, switched in models.items():
        for count in shots:
            with switched(), torch.no_grad():
                lm = HFLM(pretrained=base, tokenizer=tokenizer, batch_size=config.data.micro_batch)
                found = simple_evaluate(model=lm, tasks=tasks, num_fewshot=count, task_manager=manager)
            for task, numbers in found["results"].items():
                told = {key: value for key, value in numbers.items() if isinstance(value, int | float)}
                rows.append(Measurement(name, count, told, task))
    result = LmEval(rows)
    tables.print_lm_eval(result)
    if run is not None:
        print(f"written   {result.write(run)}")
    return result


def _find(names: list[str]) -> tuple[TaskManager, list[str]]:
    """What knows the tasks, and their names. Raises ConfigError for tasks that nobody knows."""
    files = {name: Path(name).expanduser() for name in names if name.endswith((".yaml", ".yml"))}
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


def _load(
    run: Path | None, config: Config, checkpoint: str | None
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerFast]:
    if run is not None:
        trained = load_trained(run, config, find_weights(run, checkpoint))
        return trained.model, tokenizer_of(run, config)
    loaded = loading.load(
        config.model, config.adapter, seed=config.seed, device=torch.device("cpu"), shard=lambda block: None
    )
    return loaded.model, load_tokenizer(config.model, config.data.chat_template)
