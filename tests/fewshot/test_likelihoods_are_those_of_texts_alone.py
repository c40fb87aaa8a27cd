"""What a tree of prompts and answers says is what a plain model says of each whole text by itself."""

import numpy as np
import pytest
import torch
from small import LLAMA
from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from distft.errors import ConfigError
from distft.evaluate.fewshot.choice import Chooser, check_context
from distft.evaluate.fewshot.prompt_template import match, openings, questions
from distft.evaluate.fewshot.tree import longest, trees
from tests.resume.tiny_run import write_tokenizer

SHOTS = "sun is up: day\n\nmoon is up: night\n\n"
PROMPTS = [SHOTS + text for text in ("stars: ", "a very blue sky:", "sun:\n", "it rains and rains, and it is dark:")]
WORDS = ["day", "night", "neither of the two"]
SMALL = {key: value for key, value in LLAMA.items() if key != "model_type"} | {
    "vocab_size": 260,
    "max_position_embeddings": 256,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(write_tokenizer(tmp_path_factory.mktemp("bytes")))


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL)).eval()


def gemma():
    """Softcaps on logits and attention (so eager attention), and a window that none of these texts fills."""
    torch.manual_seed(0)
    return Gemma2ForCausalLM(
        Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=2.0, sliding_window=200, query_pre_attn_scalar=8)
    ).eval()


def alone(model, tokenizer, context: str, answer: str) -> float:
    """log P(answer | context) by a forward pass over the two as one text; in this tokenizer each byte is a token."""
    before, ids = len(context.encode()), tokenizer(context + answer, return_tensors="pt").input_ids
    with torch.no_grad():
        chances = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
    return chances.gather(1, ids[0, 1:, None])[before - 1 :].sum().item()


def likelihoods(model, asked, world_size=1) -> np.ndarray:
    chooser = Chooser(model, torch.float32).eval()
    found = {}
    with torch.no_grad():
        for rank in range(world_size):
            for tree in trees(asked, rank, world_size):
                loss, rows = chooser(tree)
                assert loss.item() == pytest.approx(-np.sum(rows), rel=1e-5)
                found.update(zip(tree.documents, rows, strict=True))
    return np.stack([found[number] for number in range(len(asked))])


@pytest.mark.parametrize("make", [llama, gemma])
def test_a_tree_gives_the_likelihood_of_each_text_alone(make, tokenizer):
    model = make()
    asked = list(questions(PROMPTS, WORDS, tokenizer, chat=False))
    reference = [
        [alone(model, tokenizer, p.rstrip(" "), w if p.endswith("\n") else f" {w}") for w in WORDS] for p in PROMPTS
    ]
    np.testing.assert_allclose(likelihoods(model, asked), reference, rtol=1e-4)


def test_small_trees_and_several_ranks_give_the_same(tokenizer, monkeypatch):
    model, asked = llama(), list(questions(PROMPTS, WORDS, tokenizer, chat=False))
    whole = likelihoods(model, asked)
    monkeypatch.setattr("distft.evaluate.fewshot.tree.TOKENS", 90)
    assert len(list(trees(asked, 0, 1))) > 2
    assert len({len(list(trees(asked, rank, 3))) for rank in range(3)}) == 1, "ranks would wait for each other"
    np.testing.assert_allclose(likelihoods(model, asked, world_size=3), whole, rtol=1e-5)


def test_a_chat_prompt_is_what_the_template_writes_and_the_answer_follows_at_once(tokenizer):
    (question,) = questions(["sun: "], ["day"], tokenizer, chat=True)
    assert tokenizer.decode(question.prompt) == "<|user|>sun: </s>"
    assert [tokenizer.decode(tokens) for tokens in question.answers] == ["day"]


def test_an_answer_that_changes_the_token_before_it_is_scored_from_there_on(tokenizer):
    """As in SentencePiece: 'a' and 'b' may become one token 'ab', which then holds the end of the prompt."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {text: i for i, text in enumerate(["x", " ", "b", "c", " b", "x b"])}
    merging = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocabulary, [(" ", "b"), ("x", " b")])))
    (question,) = questions(["xx"], ["b", "c"], merging, chat=False)
    assert question.prompt == [0]
    assert question.answers == [[5], [0, 1, 3]]
    assert question.scored_from == [0, 1]


def test_openings_are_the_prompts_without_what_a_tokenizer_adds_at_the_end():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"[B]": 0, "[E]": 1, "sun": 2, "day": 3, "?": 4}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = TemplateProcessing(single="[B] $A [E]", special_tokens=[("[B]", 0), ("[E]", 1)])
    framing = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="[B]", eos_token="[E]")
    assert openings(["sun "], framing, chat=False) == [[0, 2]]
    (question,) = questions(["sun"], ["day"], framing, chat=False)
    assert (question.prompt, question.answers) == ([0, 2], [[3]])


@pytest.mark.parametrize(
    ("reply", "found"), [(" Day.", 0), ("night\nsun:", 1), ("day after", 2), ("the day", -1), ("", -1)]
)
def test_a_reply_is_the_longest_word_that_it_begins_with(reply, found):
    assert match(reply, ["day", "night", "day after"]) == found


def test_a_text_beyond_the_context_or_the_window_is_refused(tokenizer):
    asked = list(questions(PROMPTS, WORDS, tokenizer, chat=False))
    limit = longest(asked)
    assert limit == max(len((p.rstrip(" ") + " " + w).encode()) for p in PROMPTS for w in WORDS)
    check_context(LlamaConfig(max_position_embeddings=limit), limit)
    for config in (LlamaConfig(max_position_embeddings=limit - 1), Gemma2Config(sliding_window=limit - 1)):
        with pytest.raises(ConfigError, match=f"context of {limit - 1} tokens, got {limit}"):
            check_context(config, limit)


def test_an_empty_prompt_is_refused(tokenizer):
    with pytest.raises(ConfigError, match="prompt: must show at least a token"):
        list(questions(["sun", ""], ["day"], tokenizer, chat=False))
