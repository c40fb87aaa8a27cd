"""What the command tests run in one child process: torch is imported once, and this process joins no group."""

import contextlib
import importlib
import importlib.util
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BASE = ["+exp=llama_lora", "model=hub", "model.dtype=float32", "data=jsonl", "data.deduplicate=true"]
SHORT = ["data.max_length=64", "data.global_batch=4", "data.eval_fraction=0.25", "data.num_workers=1", "steps=3"]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LOUD = [
    "optim.lr=0.02",
    "optim.schedule=constant",
    "optim.warmup=0",
    "evaluation.samples=1",
    "evaluation.max_new_tokens=3",
]


RUNS: dict[str, list[str]] = {
    "lora": [],
    "bf16": ["model.dtype=bfloat16"],
    "nf4": ["model.quantization=nf4"],
    "dora": ["adapter=dora"],
    "pissa": ["adapter=pissa", "adapter.rslora=true"],
    "olora": ["adapter.init=olora"],
    "loftq": ["adapter=loftq", "model.quantization=nf4"],
    "head": ["adapter.modules_to_save=[lm_head]"],
    "tied_head": ["adapter.targets=[lm_head,q_proj]"],
    "tied_embeddings": ["adapter.targets=[embed_tokens,q_proj]"],
    "tied_both": ["adapter.targets=[embed_tokens,lm_head]"],
    "tied_dora": ["adapter=dora", "adapter.targets=[lm_head,v_proj]"],
    "tokens": ["adapter.options.trainable_token_indices=[0,1,20,21,22,23,24,25]"],
    "full": ["adapter=full", "optim.lr=0.002"],
    "again": ["seed=1"],
    "wide": ["seed=2", "adapter.r=24", "adapter.alpha=12"],
    "again_head": ["seed=1", "adapter.modules_to_save=[lm_head]"],
    "often": ["checkpoint.every=1", "checkpoint.keep=3"],
    "often_full": ["adapter=full", "optim.lr=0.002", "checkpoint.every=1", "checkpoint.keep=3"],
}
"""What each trained run adds to that."""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


def make_base(folder: Path) -> None:
    """A tiny Llama as anyone would save it, with a small tokenizer: large vocabularies take a second to load."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = letters, decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=letters.alphabet())
    tokenizer.train_from_iterator(["Say number and the next figure user assistant"] * 4, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1], chat_template=CHATML
    ).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(tokenizer.get_vocab()),
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        **shape,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():  # large enough that 4 bits and an adapter change the loss
            if parameter.dim() == 2:
                parameter.normal_(0, 0.15)
    model.generation_config.max_length = 99
    model.save_pretrained(folder)


def make_data(file: Path, word: str = "number") -> None:
    chats = [
        [
            {"role": "user", "content": f"Say {word} {i} and the next"},
            {"role": "assistant", "content": f"{i} and {i + 1}"},
        ]
        for i in range(60)
    ]
    file.write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))


def train(argv: list[str]) -> Path:
    """A finished run."""
    from distft.config.reading.compose import load
    from distft.runtime.env import Ranks
    from distft.runtime.stop import StopFlag
    from distft.train.command import train as train_run

    with _quiet(), _same_environment():
        return train_run(load(argv, program="distft.train", world_size=1), Ranks(), StopFlag())


def command(program: str, argv: list[str], sabotage: Callable[[Any], Any] | None = None) -> Done:
    """`python -m PROGRAM ARGV`, ended as `run_command` would; `sabotage` breaks something and returns the mend."""
    from distft.errors import DistftError

    module = importlib.import_module(f"{program}.command")
    mend = sabotage(module) if sabotage else None
    with _quiet() as (out, err), _same_environment():
        try:
            module.main(argv)
            code = 0
        except DistftError as error:
            code = error.exit_code
            print(error, file=err)
        finally:
            if mend:
                mend()
    return Done(code, out.getvalue(), err.getvalue())


def wrong_merge(module: Any) -> Callable[[], None]:
    """One merged layer off by two percent."""
    from distft.export import formats

    right = formats.merge

    def wrong(model: Any) -> Any:
        merged = right(model)
        merged.model.layers[0].self_attn.v_proj.weight.data *= 1.02
        return merged

    formats.merge = wrong
    return lambda: setattr(formats, "merge", right)


def wrong_file(module: Any) -> Callable[[], None]:
    """A tensor on disk that differs from the model in memory."""
    from safetensors.torch import load_file, save_file
    from transformers import PreTrainedModel

    right = PreTrainedModel.save_pretrained

    def wrong(self: Any, folder: Path, **options: Any) -> None:
        right(self, folder, **options)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.1.mlp.down_proj.weight"] *= 1.02
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    PreTrainedModel.save_pretrained = wrong
    return lambda: setattr(PreTrainedModel, "save_pretrained", right)


def loss_of_folder(run: Path, folder: Path, base: Path | None = None, nf4: bool = False) -> float:
    """The run's held-out loss by nothing but transformers, PEFT and cross-entropy, document by document.

    `folder` is a model, or an adapter on `base`, whose blocks are rounded to NF4 by bitsandbytes where asked for.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base or folder, dtype=torch.float32)
    if nf4:
        _round_to_nf4(model)
    if base is not None:
        model = PeftModel.from_pretrained(model, folder)
    return _loss(model.eval(), run)


def _loss(model: Any, run: Path) -> float:
    import torch

    total, count = 0.0, 0
    with torch.no_grad():
        for ids, targets in _held_out(run):
            logits = model(input_ids=torch.from_numpy(ids)[None]).logits[0]
            goal = torch.from_numpy(targets)
            total += torch.nn.functional.cross_entropy(logits, goal, ignore_index=-100, reduction="sum").item()
            count += int((goal != -100).sum())
    return total / count


def chances_of_folder(base: Path, adapter: Path | None, texts: list[str], answers: list[str]) -> list[list[float]]:
    """How likely each answer is among them after each text, text by text, by transformers and PEFT alone."""
    import torch

    model, tokenizer = _adapted(base, adapter)
    chances = []
    for text in texts:
        before = len(tokenizer(text).input_ids)
        row = []
        for answer in answers:
            ids = tokenizer(text + answer, return_tensors="pt").input_ids
            with torch.no_grad():
                said = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            row.append(said.gather(1, ids[0, 1:, None])[before - 1 :].sum())
        chances.append(torch.stack(row).softmax(0).tolist())
    return chances


def class_chances_of_folder(base: Path, adapter: Path, texts: list[str]) -> tuple[list[str], list[list[float]]]:
    """The labels, and each one's probability for each text."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    labels = json.loads((adapter / "task.json").read_text())["labels"]
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(labels), dtype=torch.float32)
    model, tokenizer = PeftModel.from_pretrained(plain, adapter).eval(), AutoTokenizer.from_pretrained(base)
    with torch.no_grad():
        rows = [tokenizer(text, return_tensors="pt").input_ids for text in texts]
        return labels, [model(input_ids=ids).logits[0].softmax(-1).tolist() for ids in rows]


def replies_of_folder(base: Path, adapter: Path, texts: list[str], count: int) -> list[str]:
    """What follows each text, greedily."""
    model, tokenizer = _adapted(base, adapter)
    replies = []
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        out = model.generate(**inputs, max_new_tokens=count, do_sample=False)[0]
        replies.append(tokenizer.decode(out[inputs.input_ids.shape[1] :], skip_special_tokens=True))
    return replies


def command_without(package: str, program: str, argv: list[str]) -> Done:
    """`command` where a package is not installed."""
    find = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *more: None if name == package else find(name, *more)
    try:
        return command(program, argv)
    finally:
        importlib.util.find_spec = find


def loss_of_target(base: Path, adapter: Path | None, text: str, target: str) -> float:
    """Minus the log-likelihood of `target` after `text`."""
    import torch

    model, tokenizer = _adapted(base, adapter)
    known = len(tokenizer(text, add_special_tokens=False).input_ids)
    ids = tokenizer(text + target, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad():
        chances = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return -chances.gather(1, ids[0, 1:, None])[known - 1 :].sum().item()


def _adapted(base: Path, adapter: Path | None) -> tuple[Any, Any]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    return model.eval(), AutoTokenizer.from_pretrained(base)


def reply_of_folder(folder: Path) -> str:
    """What a user does with an export: chat template, generate, decode."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    chat = [{"role": "user", "content": "Say number 3"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    return tokenizer.decode(model.generate(**inputs, max_new_tokens=2)[0])


def _held_out(run: Path) -> Iterator[tuple[Any, Any]]:
    from distft.config.reading.compose import load_run
    from distft.config.schema import Section
    from distft.data.prepare import prepare
    from distft.model.tokenizer import load_tokenizer
    from distft.task.chat import Template

    _, config, _ = load_run([f"run={run}"], Section, program="tests")
    corpus = prepare(config.data, Template(load_tokenizer(config.model))).eval
    assert corpus is not None
    return (corpus.document(i) for i in range(corpus.num_documents))


def _round_to_nf4(model: Any) -> None:
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    for layer in model.model.layers.modules():
        if isinstance(layer, torch.nn.Linear):
            codes, state = quantize_4bit(layer.weight.data, blocksize=64, compress_statistics=True, quant_type="nf4")
            layer.weight.data = dequantize_4bit(codes, state).reshape(layer.weight.shape)


@contextlib.contextmanager
def _quiet() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield out, err


@contextlib.contextmanager
def _same_environment() -> Iterator[None]:
    """A process group leaves its ranks in the environment, where the next command would read them."""
    before = dict(os.environ)
    try:
        yield
    finally:
        import torch.distributed

        if torch.distributed.is_initialized():  # the command failed on its way
            torch.distributed.destroy_process_group()
        os.environ.clear()
        os.environ.update(before)
