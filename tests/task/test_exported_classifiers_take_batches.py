"""An exported model takes a padded batch: each row's scores are those of the row alone."""

import command_runs
import pytest
import small
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from distft.errors import DistftError
from distft.session.parity import Parity

NO_PADDING = {**{k: v for k, v in small.LLAMA.items() if k != "pad_token_id"}}


def test_a_classifier_whose_batch_is_not_its_rows_is_refused():
    torch.manual_seed(0)
    config = AutoConfig.for_model(**small.LLAMA, num_labels=3)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    rows = [torch.tensor([[5, 6, 7, 8, 9, 10, 11]])]
    Parity(rows, model).require_padded(model)
    model.register_forward_hook(lambda module, args, out: type(out)(logits=out.logits * len(out.logits)))
    with pytest.raises(DistftError, match="a batch padded on the right must give what its rows give alone"):
        Parity(rows, model).require_padded(model)


CASES = {
    "decoder": ("sequence_classification", NO_PADDING, small.labelled, AutoModelForSequenceClassification),
    "encoder": ("sequence_classification", small.BERT, small.labelled, AutoModelForSequenceClassification),
    "tags": ("token_classification", NO_PADDING, small.tagged, AutoModelForTokenClassification),
    "causal": ("causal_lm", NO_PADDING, small.completion, AutoModelForCausalLM),
}
TEXTS = ["sun rain what is the blue sky", "tea", "ann lives in rome"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("pad", ["[PAD]", "[SEP]"], ids=["own", "as end"])
def test_a_padded_batch_scores_as_its_rows(case, pad, child, command, words_folder, tmp_path):
    task, shape, make, auto = CASES[case]
    if pad != "[PAD]":
        tokenizer = AutoTokenizer.from_pretrained(words_folder)
        tokenizer.pad_token = pad
        tokenizer.save_pretrained(tmp_path / "words")
        words_folder = tmp_path / "words"
    run = tmp_path / "run"
    child(command_runs.train, [*small.run_words(task, words_folder, tmp_path, shape, make), "steps=2"])
    done = command("distft.export", f"run={run}", "export.to=merged")
    assert done.code == 0, done.err
    assert "in a batch padded on the" in done.out
    folder = run / "exports" / "merged"
    model, tokenizer = auto.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    assert model.config.pad_token_id == tokenizer.pad_token_id is not None
    tokenizer.padding_side = "left" if auto is AutoModelForCausalLM else "right"
    takes_types = "token_type_ids" if case == "encoder" else "attention_mask"
    names = ["input_ids", "attention_mask", takes_types]

    def scores(texts: list[str]) -> torch.Tensor:
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            return model(**{name: batch[name] for name in names}).logits

    together = scores(TEXTS)
    for i, text in enumerate(TEXTS):
        alone = scores([text])[0]
        row = together[i]
        if alone.dim() == 2:
            row = row[-len(alone) :] if auto is AutoModelForCausalLM else row[: len(alone)]
        torch.testing.assert_close(row, alone, atol=1e-5, rtol=1e-5)
