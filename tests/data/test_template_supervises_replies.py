"""Which tokens are trained on, against expectations written by hand: [[supervised]]."""

from pathlib import Path

import pytest

from distft.task.chat import Document, Malformed, Template, Unusable
from tests.data.chats import chat

TEMPLATES = Path(__file__).parent / "templates"
MARKED_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
)


def with_template(tokenizer, name, bos, specials):
    tokenizer.add_special_tokens({"bos_token": bos, "additional_special_tokens": specials})
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text()
    return tokenizer


def llama3(tokenizer):
    specials = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return with_template(tokenizer, "llama3", "<|begin_of_text|>", specials)


def qwen3(tokenizer):
    return with_template(tokenizer, "qwen3", "<|endoftext|>", ["<|im_start|>", "<|im_end|>"])


def gemma3(tokenizer):
    return with_template(tokenizer, "gemma3", "<bos>", ["<start_of_turn>", "<end_of_turn>"])


def one(tokenizer, row, format="chat", **options) -> Document | Malformed | Unusable:
    result = Template(tokenizer, **options).documents([row], format)[0]
    return result[0] if isinstance(result, list) else result


def marked(tokenizer, row, format="chat", **options) -> str:
    """The document decoded, its supervised tokens in double brackets."""
    document = one(tokenizer, row, format, **options)
    assert isinstance(document, Document), document
    text, inside = "", False
    for token, supervised in zip(document.ids.tolist(), document.labels.tolist(), strict=True):
        text += "[[" * (supervised and not inside) + "]]" * (inside and not supervised) + tokenizer.decode([token])
        inside = supervised
    return text + "]]" * inside


TWO_TURNS = chat("Hi", "Hello there!", "Bye", " See you. \n")


def test_llama3_replies_and_their_eot_are_supervised(tokenizer):
    row = {"messages": [{"role": "system", "content": "Be brief."}, *TWO_TURNS["messages"]]}
    assert marked(llama3(tokenizer), row) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[Hello there!<|eot_id|>]]"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[See you.<|eot_id|>]]"
    )


def test_qwen3_last_reply_has_the_empty_think_block_it_must_write(tokenizer):
    assert marked(qwen3(tokenizer), TWO_TURNS) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n[[Hello there!<|im_end|>]]\n"
        "<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\n[[<think>\n\n</think>\n\n See you. \n<|im_end|>]]\n"
    )


def test_qwen3_reasoning_is_supervised_where_the_template_keeps_it(tokenizer):
    row = chat("1+1?", "<think>\none and one\n</think>\n\n2", "And 2+2?", "<think>\ndouble\n</think>\n\n4")
    assert marked(qwen3(tokenizer), row) == (
        "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n[[2<|im_end|>]]\n"
        "<|im_start|>user\nAnd 2+2?<|im_end|>\n"
        "<|im_start|>assistant\n[[<think>\ndouble\n</think>\n\n4<|im_end|>]]\n"
    )


def test_gemma3_replies_of_the_model_role_are_supervised(tokenizer):
    row = {"messages": [{"role": "system", "content": "Be brief."}, *TWO_TURNS["messages"]]}
    assert marked(gemma3(tokenizer), row) == (
        "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n[[Hello there!<end_of_turn>]]\n"
        "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n[[See you.<end_of_turn>]]\n"
    )


SMOLLM2_SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"


def test_chatml_of_smollm2_replies_are_supervised(tokenizer):
    assert marked(tokenizer, TWO_TURNS) == (
        SMOLLM2_SYSTEM + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n[[Hello there!<|im_end|>]]\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n[[ See you. \n<|im_end|>]]\n"
    )


@pytest.mark.parametrize("reply", ["", "Hi", "assistant", "<|im_end|>", "Grüße, 東京 🗼", "user\nHi"])
def test_a_reply_like_its_surroundings_is_found(tokenizer, reply):
    row = chat("Hi", reply, "Hi", "Hi")
    document = one(tokenizer, row)
    supervised = tokenizer.decode(document.ids[document.labels])
    assert supervised == f"{reply}<|im_end|>Hi<|im_end|>"


def test_generation_marks_of_a_template_are_followed(tokenizer):
    tokenizer.chat_template = MARKED_CHATML
    assert marked(tokenizer, TWO_TURNS) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n[[Hello there!<|im_end|>]]\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n[[ See you. \n<|im_end|>]]\n"
    )


def test_marked_and_unmarked_template_agree(tokenizer):
    tokenizer.chat_template = MARKED_CHATML
    by_marks = one(tokenizer, TWO_TURNS)
    tokenizer.chat_template = MARKED_CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    by_spans = one(tokenizer, TWO_TURNS)
    assert by_marks.ids.tolist() == by_spans.ids.tolist()
    assert by_marks.labels.tolist() == by_spans.labels.tolist()


@pytest.mark.parametrize("prepare", [llama3, qwen3])
def test_tool_calls_are_supervised(tokenizer, prepare):
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    row = chat("1+1?", "", "2", "It is 2")
    row["messages"][1] = {"role": "assistant", "content": "", "tool_calls": [call]}
    row["messages"][2]["role"] = "tool"
    document = one(prepare(tokenizer), row)
    supervised = tokenizer.decode(document.ids[document.labels])
    assert (
        supervised
        == {
            llama3: '{"name": "add", "parameters": {"a": 1}}<|eot_id|>It is 2<|eot_id|>',
            # Its template leaves out the empty think block of a turn that others follow.
            qwen3: '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>'
            "<think>\n\n</think>\n\nIt is 2<|im_end|>",
        }[prepare]
    )


def test_a_space_before_the_reply_belongs_to_its_first_token(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    assert marked(tokenizer, chat("Hi", "Hello", "Bye", "Ciao")) == (
        "[INST] Hi [/INST][[ Hello<|im_end|>]][INST] Bye [/INST][[ Ciao<|im_end|>]]"
    )


def test_loss_on_all_supervises_every_token_but_the_first(tokenizer):
    document = one(tokenizer, TWO_TURNS, loss_on="all")
    assert document.labels.tolist() == [False] + [True] * (len(document.ids) - 1)


def test_completion_and_its_end_are_supervised(tokenizer):
    row = {"prompt": "The capital of France is", "completion": " Paris."}
    assert marked(tokenizer, row, "prompt_completion") == "The capital of France is[[ Paris.<|im_end|>]]"


def test_completion_of_messages_is_supervised_and_the_prompt_is_not(tokenizer):
    messages = TWO_TURNS["messages"]
    row = {"prompt": messages[:3], "completion": messages[3:]}
    assert marked(tokenizer, row, "prompt_completion") == (
        SMOLLM2_SYSTEM + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello there!<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n[[ See you. \n<|im_end|>]]\n"
    )


def test_text_is_supervised_from_its_second_token_to_its_end(tokenizer):
    assert marked(tokenizer, {"text": "Once upon a time"}, "text") == "Once[[ upon a time<|im_end|>]]"


def test_text_gets_the_tokenizers_own_bos_once(tokenizer):
    from tokenizers.processors import TemplateProcessing

    pieces = [("<|im_start|>", 1), ("<|im_end|>", 2)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", pair="$A $B", special_tokens=pieces
    )
    assert marked(tokenizer, {"text": "Once upon"}, "text") == "<|im_start|>[[Once upon<|im_end|>]]"
    assert marked(tokenizer, chat("Hi", "Yo")).count("<|im_start|>") == 3


def test_todays_date_is_not_in_the_tokens(tokenizer):
    tokenizer.chat_template = "{{ strftime_now('%Y-%m-%d') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    assert marked(tokenizer, chat("Hi", "Yo")).startswith("2024-07-26Hi")


def test_rows_a_template_refuses_are_unusable_by_its_own_words(tokenizer):
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}
    result = one(gemma3(tokenizer), row)
    assert isinstance(result, Unusable) and "Conversation roles must alternate" in str(result)


def test_a_turn_that_the_template_leaves_out_makes_the_row_unusable(tokenizer):
    tokenizer.chat_template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    result = one(tokenizer, chat("Hi", "Yo"))
    assert isinstance(result, Unusable) and "leaves out an assistant turn" in str(result)


@pytest.mark.parametrize(
    ("row", "format", "words"),
    [
        ({"messages": []}, "chat", "'messages' must be a list of messages, got []"),
        ({"messages": "Hi"}, "chat", "'messages' must be a list of messages"),
        ({"messages": [{"content": "Hi"}]}, "chat", "an object with 'role' and 'content'"),
        ({"messages": [{"role": "user", "content": 3}]}, "chat", "'content' must be a string"),
        ({"prompt": "Hi"}, "prompt_completion", "must have 'completion', got ['prompt']"),
        ({"prompt": "Hi", "completion": []}, "prompt_completion", "both strings or both lists"),
        ({"text": 3}, "text", "'text' must be a string, got 3"),
        ({"text": "\ud800"}, "text", "lone surrogate at character 0"),
    ],
)
def test_a_row_not_of_its_format_is_malformed(tokenizer, row, format, words):
    result = one(tokenizer, row, format)
    assert isinstance(result, Malformed) and words in str(result)
