"""An exported model generates: with what of the base's settings transformers takes, up to the token that ends turns."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from distft.config import schema
from distft.export.generation import generation_config
from distft.task.reply_end import reply_ends

TURNS = {
    "chatml": "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n",
    "gemma": "<start_of_turn>{{ m['role'] }}\n{{ m['content'] }}<end_of_turn>\n",
    "llama3": "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] }}<|eot_id|>",
    "marked": "<|im_start|>{{ m['role'] }}\n{% generation %}{{ m['content'] }}{% endgeneration %}<|im_end|>\n",
    "none": "{{ m['role'] }}: {{ m['content'] }}\n",
}
ENDS = {"chatml": "<|im_end|>", "gemma": "<end_of_turn>", "llama3": "<|eot_id|>", "marked": "<|im_end|>"}


@pytest.fixture(scope="module")
def tokenizer(base):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    more = ["<|end|>", "<start_of_turn>", "<end_of_turn>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    tokenizer.add_special_tokens({"eos_token": "<|end|>", "additional_special_tokens": more[1:]})
    return tokenizer


@pytest.mark.parametrize("template", TURNS)
def test_a_reply_ends_with_the_token_that_closes_a_turn_in_the_template(tokenizer, template):
    tokenizer.chat_template = "{% for m in messages %}" + TURNS[template] + "{% endfor %}"
    wanted = [ENDS[template]] if template in ENDS else []
    assert reply_ends(tokenizer) == tokenizer.convert_tokens_to_ids([*wanted, "<|end|>"])


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"top_k": 10}, {}),
        ({"min_p": 0.1, "typical_p": 0.5, "epsilon_cutoff": 0.1}, {}),
        ({"early_stopping": True, "length_penalty": 2.0}, {}),
        ({"temperature": 0.0, "do_sample": False}, {}),
        ({"temperature": 0.0, "do_sample": True}, {}),
        ({"temperature": 0.6, "top_p": 0.9}, {}),
        ({"num_return_sequences": 3}, {}),
        ({"output_scores": True, "synced_gpus": True}, {}),
        ({"min_p": 1.5, "do_sample": True, "top_k": 7}, {"do_sample": True, "top_k": 7}),
        ({"do_sample": True, "temperature": 0.6, "min_p": 0.1}, {"do_sample": True, "temperature": 0.6, "min_p": 0.1}),
        (
            {"num_beams": 2, "early_stopping": True, "length_penalty": 2.0},
            {"num_beams": 2, "early_stopping": True, "length_penalty": 2.0},
        ),
        ({"max_length": 99, "suppress_tokens": [300]}, {"max_length": 99, "suppress_tokens": [300]}),
        ({"repetition_penalty": 1.1, "eos_token_id": 5}, {"repetition_penalty": 1.1}),
    ],
)
def test_settings_of_the_base_are_kept_where_they_can_be_used(base, tokenizer, tmp_path, given, wanted):
    folder = shutil.copytree(base, tmp_path / "base")
    (folder / "generation_config.json").write_text(json.dumps(given))
    settings = generation_config(schema.Model(source=str(folder)), tokenizer, [1])
    settings.save_pretrained(tmp_path)  # refuses what is not strictly valid
    back = GenerationConfig.from_pretrained(tmp_path)
    back.validate(strict=True)
    told = {name: value for name, value in back.to_diff_dict().items() if value is not None and value is not False}
    told.pop("transformers_version")
    assert told.pop("eos_token_id") == ([5, 1] if "eos_token_id" in given else [1])
    assert told == {"bos_token_id": 0, **wanted}
    model = AutoModelForCausalLM.from_pretrained(base)
    assert model.generate(torch.tensor([[5, 6]]), generation_config=back, max_new_tokens=2).shape[1] <= 4
