"""Models, tokenizers and rows for the tests of tasks: small, made up, and there in a moment."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORDS = """sun rain what is the blue sky never seven tea
ann bob paris rome lives in works at acme globex""".split()  # noqa: SIM905

BERT = {
    "model_type": "bert",
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
T5 = {
    "model_type": "t5",
    "vocab_size": 40,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "dropout_rate": 0.0,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "eos_token_id": 3,
    "decoder_start_token_id": 0,
    "tie_word_embeddings": True,
}
MODELS = {"bert": BERT, "llama": LLAMA, "t5": T5}


def write_tokenizer(folder: Path) -> Path:
    """A tokenizer of whole words that frames texts and pairs as BERT's does; of unknown words, the letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS, "##s", "##ly"])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        eos_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    return folder


def say(draw: random.Random, most: int = 12) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(1, most)))


def labelled(draw: random.Random) -> dict[str, Any]:
    return {"text": say(draw), "label": draw.choice(["sport", "news", "art"])}


def labelled_pair(draw: random.Random) -> dict[str, Any]:
    return {"text_a": say(draw), "text_b": say(draw), "label": draw.choice(["yes", "no"])}


def several_labels(draw: random.Random) -> dict[str, Any]:
    return {"text": say(draw), "label": draw.sample(["a", "b", "c", "d"], k=draw.randint(0, 3))}


def valued(draw: random.Random) -> dict[str, Any]:
    return {"text": say(draw), "label": round(draw.uniform(-1, 1), 3)}


def tagged(draw: random.Random) -> dict[str, Any]:
    """Names of one or two words among others; the tags follow from the words."""
    tokens, tags = [], []
    for _ in range(draw.randint(2, 5)):
        kind = draw.choice(["", "PER", "LOC"])
        words = draw.choice({"": [["sun"], ["tea"]], "PER": [["ann"], ["bob", "seven"]], "LOC": [["rome"]]}[kind])
        tokens += words
        tags += [f"{'I' if i else 'B'}-{kind}" if kind else "O" for i in range(len(words))]
    return {"tokens": [*tokens, "ann", "rome"], "tags": [*tags, "B-PER", "B-LOC"]}


def related(draw: random.Random) -> dict[str, Any]:
    who, verb, where = draw.choice(["ann", "bob"]), draw.choice(["lives in", "works at"]), draw.choice(["rome", "acme"])
    text = f"{say(draw, 4)} {who} {verb} {where} {say(draw, 3)}"
    places = [[text.index(word), text.index(word) + len(word)] for word in (f" {who} {verb}", f"{verb} {where}")]
    subject = [places[0][0] + 1, places[0][0] + 1 + len(who)]
    object = [places[1][1] - len(where), places[1][1]]
    return {"text": text, "subject": subject, "object": object, "label": verb.split()[0]}


def answered(draw: random.Random) -> dict[str, Any]:
    context = say(draw, 60)
    answer = draw.choice(context.split())
    at = context.index(answer)
    return {"question": say(draw, 4), "context": context, "answers": {"text": [answer], "answer_start": [at]}}


def rewritten(draw: random.Random) -> dict[str, Any]:
    source = say(draw, 10)
    return {"source": source, "target": " ".join(reversed(source.split()[:6]))}


def pair(draw: random.Random) -> dict[str, Any]:
    chosen = say(draw, 6)
    return {"prompt": f"{say(draw, 6)} ", "chosen": chosen, "rejected": f"{chosen} {say(draw, 6)}"}


def completion(draw: random.Random) -> dict[str, Any]:
    return {"prompt": f"{say(draw, 6)} ", "completion": say(draw, 6)}


def write_rows(file: Path, make: Callable[[random.Random], dict[str, Any]], count: int, seed: int = 0) -> str:
    draw = random.Random(seed)
    file.write_text("".join(json.dumps(make(draw)) + "\n" for _ in range(count)))
    return str(file)


def run_words(
    task: str, tokenizer: Path, run_root: Path, shape: dict[str, Any], make: Callable[..., dict[str, Any]], *more: str
) -> list[str]:
    """The words of a tiny run of a task, in `run_root/run`."""
    run_root.mkdir(exist_ok=True, parents=True)
    shown = "{" + ", ".join(f"{key}: {value}" for key, value in shape.items()) + "}"
    return [
        f"task={task}",
        "model=hub",
        f"model.source={tokenizer}",
        f"model.random_init={shown}",
        "model.dtype=float32",
        "data=jsonl",
        f"data.train={write_rows(run_root / 'train.jsonl', make, 40, seed=1)}",
        f"data.eval={write_rows(run_root / 'eval.jsonl', make, 13, seed=2)}",
        "data.eval_fraction=0",
        "data.max_length=48",
        "data.packing=false",
        "data.global_batch=4",
        "data.micro_batch=2",
        *(["task.max_new_tokens=6"] if task == "seq2seq" else []),
        "data.num_workers=1",
        f"data.cache_dir={run_root / 'cache'}",
        "adapter.r=4",
        "adapter.dropout=0.2",
        "optim.lr=0.01",
        "optim.warmup=2",
        "steps=6",
        "checkpoint.every=2",
        "evaluation.every=3",
        "name=run",
        f"run_root={run_root}",
        *more,
    ]
