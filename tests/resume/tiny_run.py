"""A run that takes a second: a Llama of two small layers, a tokenizer of bytes, forty made-up dialogues."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.resume.commands import Commands

SHAPE = (
    "{model_type: llama, vocab_size: 260, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, "
    "num_attention_heads: 4, num_key_value_heads: 2, max_position_embeddings: 256, tie_word_embeddings: true}"
)
TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}"


def write_tokenizer(folder: Path) -> Path:
    """A tokenizer of single bytes with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(["</s>", "<pad>", "<|user|>", "<|assistant|>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder


def write_dialogues(file: Path, seed: int, count: int = 40) -> Path:
    draw = random.Random(seed)
    words = ["sun", "rain", "what", "is", "the", "blue", "sky", "never", "seven", "tea"]

    def say() -> str:
        return " ".join(draw.choices(words, k=draw.randint(1, 8)))

    rows = [
        {"messages": [{"role": "user", "content": say()}, {"role": "assistant", "content": say()}]}
        for _ in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    started = Commands(tmp_path_factory.mktemp("commands"))
    yield started
    started.close()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """The words of a tiny run in a folder, plus changes."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = write_tokenizer(folder / "tokenizer")
    train = write_dialogues(folder / "train.jsonl", 1)
    held_out = write_dialogues(folder / "eval.jsonl", 2, 6)

    def words(run_root: Path, *changes: str) -> list[str]:
        return [
            "model=hub",
            f"model.source={tokenizer}",
            f"model.random_init={SHAPE}",
            "model.dtype=float32",
            "data=jsonl",
            f"data.train={train}",
            f"data.eval={held_out}",
            "data.eval_fraction=0",
            "data.max_length=96",
            "data.global_batch=4",
            "data.num_workers=1",
            f"data.cache_dir={folder / 'cache'}",
            "adapter.r=4",
            "adapter.dropout=0.2",
            "optim.lr=0.01",
            "optim.warmup=2",
            "steps=6",
            "checkpoint.every=2",
            "name=run",
            f"run_root={run_root}",
            *changes,
        ]

    return words
