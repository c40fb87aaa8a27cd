"""How the heads of `transformers` models turn last hidden states into logits: at chosen tokens, and nowhere else."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from distft.errors import ConfigError

ENCODERS = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra")
"""Model types whose heads are known. A decoder's is its `score`."""


def class_names(names: Sequence[str]) -> dict[str, Any]:
    """Entries of a model's config that give its head an output a class."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def is_decoder(model: PreTrainedModel) -> bool:
    """Whether tokens see only what stands before them, as the name of the head says."""
    return hasattr(model, "score")


def require_known(model: PreTrainedModel, task: str, *, decoders: bool = True) -> None:
    """Raises ConfigError for a model whose head would be computed in another way than `transformers` does."""
    if (decoders and is_decoder(model)) or model.config.model_type in ENCODERS:
        return
    known = f"decoders and of {', '.join(ENCODERS)}" if decoders else f"encoders: {', '.join(ENCODERS)}"
    raise ConfigError(
        f"model.source: task={task} knows the heads of {known}, got a {model.config.model_type}; take another model"
    )


def classify(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Logits [D, num_labels] of a sequence classifier on states [D, H] of the tokens that it classifies from."""
    if is_decoder(model):
        return model.score(states)
    if model.config.model_type == "bert":
        return model.classifier(model.dropout(model.base_model.pooler(states.unsqueeze(1))))
    if model.config.model_type == "distilbert":
        return model.classifier(model.dropout(nn.functional.relu(model.pre_classifier(states))))
    return model.classifier(states.unsqueeze(1))  # RoBERTa's and Electra's heads take the first token themselves


def classify_tokens(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Logits [N, num_labels] of a token classifier on states [N, H]."""
    return (model.score if is_decoder(model) else model.classifier)(model.dropout(states))


def score_spans(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Logits [N, 2] of answers that start and end at tokens with states [N, H]."""
    if model.config.model_type == "distilbert":
        states = model.dropout(states)
    return model.qa_outputs(states)
