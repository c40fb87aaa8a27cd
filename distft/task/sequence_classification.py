"""Sequence classification: classes, several classes at once, or a number, for a text or a pair of texts."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import TaskType
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from distft.config import schema
from distft.data.corpus import Corpus
from distft.data.loader import Batch
from distft.errors import ConfigError
from distft.model.architecture import Architecture
from distft.model.load import Loaded
from distft.task import classification
from distft.task.classification_heads import class_names, classify, is_decoder, require_known
from distft.task.labels import LabelledTexts
from distft.task.module import TaskModule
from distft.task.seam import Scores

PROBLEMS = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


class SequenceClassificationTask:
    def __init__(self, config: schema.SequenceClassification):
        self.config = config

    def reader(
        self, tokenizer: PreTrainedTokenizerFast, data: schema.Data, facts: dict[str, Any] | None
    ) -> LabelledTexts:
        reader = LabelledTexts(tokenizer, data, self.config.traits.formats, self.config.kind)
        if facts is None:
            return reader
        return LabelledTexts(
            tokenizer,
            data,
            self.config.traits.formats,
            self.config.kind,
            facts["kind"],
            tuple(facts["labels"]),
            tuple(facts["counts"]),
            known=True,
        )

    def architecture(self, facts: dict[str, Any]) -> Architecture:
        settings = {**class_names(facts["labels"] or ["value"]), "problem_type": PROBLEMS[facts["kind"]]}
        heads = ("score", "pre_classifier", "classifier")
        return Architecture(AutoModelForSequenceClassification, settings, heads, peft_task=TaskType.SEQ_CLS)

    def module(self, loaded: Loaded, facts: dict[str, Any]) -> "SequenceClassifier":
        weights = classification.weights(self.config.class_weights, facts["labels"], facts["counts"])
        return SequenceClassifier(loaded.model, loaded.compute_dtype, facts, weights)

    def metrics(self, facts: dict[str, Any]) -> tuple[str, ...]:
        return ("mse", "pearson", "spearman") if facts["kind"] == "regression" else ("accuracy", "macro_f1", "micro_f1")

    def scores(self, outputs: Mapping[int, Any], held_out: Corpus, facts: dict[str, Any]) -> Scores:
        logits = np.stack([outputs[i] for i in range(held_out.num_documents)])
        labels = np.stack([held_out.document(i)[1] for i in range(held_out.num_documents)])
        if facts["kind"] == "regression":
            return classification.regression_scores(labels[:, 0], logits[:, 0])
        if facts["kind"] == "multi_label":
            return classification.multi_label_scores(labels > 0, logits > 0, facts["labels"])
        return classification.scores(labels[:, 0], logits.argmax(1), facts["labels"])


class SequenceClassifier(TaskModule):
    """A model of `AutoModelForSequenceClassification`: one row of logits a document.

    Decoders classify from the last token of each document, encoders from the first, by the model's own head.
    """

    def __init__(
        self, model: Any, compute: torch.dtype, facts: dict[str, Any], class_weights: list[float] | None = None
    ):
        super().__init__(model, compute, facts)
        require_known(self.base, "sequence_classification")
        self.class_weights = None if class_weights is None else torch.tensor(class_weights)

    def regularise(self, settings: schema.Regularisation) -> None:
        if settings.label_smoothing and self.facts["kind"] != "single_label":
            raise ConfigError(
                "regularisation.label_smoothing: must be 0 where a label is not one class of several, got "
                f"{settings.label_smoothing:g} with {self.facts['kind']} labels; use regularisation.label_smoothing=0"
            )
        super().regularise(settings)

    def loss(self, batch: Batch) -> Tensor:
        return self._loss(self.logits(batch), batch.targets)

    def evaluate(self, batch: Batch) -> tuple[Tensor, list[np.ndarray]]:
        logits = self.logits(batch)
        return self._loss(logits, batch.targets), list(logits.detach().float().cpu().numpy())

    def logits(self, batch: Batch) -> Tensor:
        """[D, num_labels]"""
        assert batch.segments is not None
        bounds = batch.segments[:, 0]
        places = bounds[:, 1] - 1 if is_decoder(self.base) else bounds[:, 0]
        return classify(self.base, self.encode(batch).flatten(0, 1)[places])

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Sum over the rows; a row's loss is the mean over its labels, as in `transformers`."""
        logits = logits.float()
        weights = None if self.class_weights is None else self.class_weights.to(logits.device)
        if self.facts["kind"] == "regression":
            return F.mse_loss(logits, targets, reduction="sum")
        if self.facts["kind"] == "multi_label":
            return F.binary_cross_entropy_with_logits(logits, targets, weights, reduction="sum") / logits.shape[1]
        return F.cross_entropy(logits, targets[:, 0], weights, reduction="sum", label_smoothing=self.smoothing)
