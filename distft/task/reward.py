"""Reward: one number for a prompt with an answer, higher for the chosen answer than for the rejected one."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel, TaskType
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast

from distft.config import schema
from distft.data.corpus import Corpus
from distft.data.loader import Batch
from distft.model.architecture import Architecture
from distft.model.load import Loaded
from distft.task.classification_heads import class_names, classify, is_decoder, require_known
from distft.task.module import TaskModule
from distft.task.pairs import Pairs, margin_scores
from distft.task.seam import Scores

NAME = "reward"


class RewardTask:
    def __init__(self, config: schema.Reward):
        self.config = config

    def reader(self, tokenizer: PreTrainedTokenizerFast, data: schema.Data, facts: dict[str, Any] | None) -> Pairs:
        # Facts put the model's config beside the adapter: its head has one output, which no base says.
        return Pairs(tokenizer, data, self.config.traits.formats, {"labels": [NAME]})

    def architecture(self, facts: dict[str, Any]) -> Architecture:
        names, heads = class_names([NAME]), ("score", "pre_classifier", "classifier")
        return Architecture(AutoModelForSequenceClassification, names, heads, peft_task=TaskType.SEQ_CLS)

    def module(self, loaded: Loaded, facts: dict[str, Any]) -> "Reward":
        return Reward(loaded.model, loaded.compute_dtype, facts)

    def metrics(self, facts: dict[str, Any]) -> tuple[str, ...]:
        return self.config.traits.metrics

    def scores(self, outputs: Mapping[int, Any], held_out: Corpus, facts: dict[str, Any]) -> Scores:
        return margin_scores(outputs)


class Reward(TaskModule):
    """A scalar head on the last token of each answer (encoders: on the first of the text), and the loss of Bradley and
    Terry: a pair's is -log sigmoid(chosen - rejected). Only differences of rewards mean something."""

    def __init__(self, model: PreTrainedModel | PeftModel, compute: torch.dtype, facts: dict[str, Any] | None = None):
        super().__init__(model, compute, facts)
        require_known(self.base, NAME)

    def loss(self, batch: Batch) -> Tensor:
        return -F.logsigmoid(self._margins(batch)).sum()

    def evaluate(self, batch: Batch) -> tuple[Tensor, list[float]]:
        margins = self._margins(batch)
        return -F.logsigmoid(margins).sum(), margins.tolist()

    def rewards(self, batch: Batch) -> Tensor:
        """[D, 2], float32: of the chosen and of the rejected answers."""
        assert batch.segments is not None
        places = batch.segments[:, :, 1] - 1 if is_decoder(self.base) else batch.segments[:, :, 0]
        states = self.encode(batch).flatten(0, 1)[places.flatten()]
        return classify(self.base, states).float().view(len(batch.documents), 2)

    def _margins(self, batch: Batch) -> Tensor:
        rewards = self.rewards(batch)
        return rewards[:, 0] - rewards[:, 1]
