"""A model with its loss inside, as engines wrap it: what every task's module is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from distft.config import schema
from distft.data.corpus import Corpus
from distft.data.loader import Batch
from distft.model import packed
from distft.model.adapter import prompt
from distft.model.regularise import Regulariser
from distft.task.generate import Prompts, greedy_replies

Columns = dict[str, tuple[str, int]]
"""dtype and width of what is kept of each target, by name."""


@dataclass
class Precompute:
    """What a module computes once for every document before training, through its `evaluate`: a teacher's predictions.

    While it is running, the outputs of `evaluate` are, by column, an array [targets of the document, width].
    """

    name: str
    """Names all that the answers depend on beside the data."""
    columns: Columns
    take: Callable[[str, Corpus, dict[str, np.ndarray]], None]
    """Called with a split (`train` or `eval`), its documents, and what was computed of them, by column, end to end."""
    is_running: bool = False

    @contextmanager
    def running(self) -> Iterator[None]:
        self.is_running = True
        try:
            yield
        finally:
            self.is_running = False


class TaskModule(nn.Module):
    """A model (maybe under PEFT) with its loss inside.

    An engine wraps it whole, so that everything that touches parameters runs inside the root's forward pass.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, compute: torch.dtype, facts: dict[str, Any] | None = None):
        super().__init__()
        self.model, self.compute, self.facts = model, compute, facts or {}
        self.switched_off = False
        self.regularise(schema.Regularisation())

    def regularise(self, settings: schema.Regularisation) -> None:
        """Sets the hooks of training; before an engine takes the module."""
        self.regularisation, self.regulariser = settings, Regulariser(self.model, settings)

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Makes the module the base meanwhile, for methods of PEFT that take nothing out of it."""
        self.switched_off = True
        layers = isinstance(self.model, PeftModel) and not prompt.is_prompt_learning(self.model)
        try:
            with self.model.disable_adapter() if layers else nullcontext():
                yield
        finally:
            self.switched_off = False

    @property
    def has_prompt(self) -> bool:
        """Whether virtual tokens stand before each row."""
        return prompt.is_prompt_learning(self.model) and not self.switched_off

    @property
    def passes(self) -> int:
        """Forward and backward passes that an engine makes over each batch; the gradient is their mean."""
        return self.regulariser.passes

    @property
    def smoothing(self) -> float:
        """Share of each target that all classes have alike."""
        return self.regularisation.label_smoothing if self.training else 0.0

    def loss(self, batch: Batch) -> Tensor:
        """Sum of the batch's losses, 0-dim, float32. The loop divides by the targets of the whole step.

        An empty batch gives a zero that is connected to what trains.
        """
        raise NotImplementedError

    def evaluate(self, batch: Batch) -> tuple[Tensor, list[Any]]:
        """The loss, and an output for each document of the batch: NumPy arrays or plain Python, for `Task.scores`."""
        return self.loss(batch), []

    precompute: Precompute | None = None
    """What is computed once for every document, before training; null: nothing."""

    def read_outside_its_module(self) -> list[nn.Parameter]:
        """Parameters that `loss` reads outside the forward pass of the module that owns them: ZeRO-3 has to know.

        A language model's output layer, whose weight an `LmHead` reads.
        """
        layer = self.base.get_output_embeddings()
        return [] if layer is None else list(layer.parameters())

    def forward(self, batch: Batch | Prompts) -> Any:
        """The one door that engines wrap: the loss in training, loss and outputs in evaluation, replies to prompts."""
        if isinstance(batch, Prompts):
            return greedy_replies(self.model if self.has_prompt else self.base, self.base, batch, self.compute)
        self.regulariser.begin(self.training, batch.seed, batch.document_ends)
        with torch.autocast(batch.input_ids.device.type, self.compute, enabled=self.compute != torch.float32):
            if not self.training:
                return self.evaluate(batch)
            return self.regulariser.with_penalty(self.loss(batch), batch.num_targets)

    @property
    def base(self) -> PreTrainedModel:
        """The model of `transformers`, adapters inside."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def encode(self, batch: Batch) -> Tensor:
        """Last hidden states [B, S, H] of the packed batch; no document sees another one."""
        rows = batch.input_ids, batch.position_ids, batch.document_ends, batch.max_document
        if self.has_prompt:
            return prompt.hidden_states(self.model, *rows)
        return packed.hidden_states(self.base, *rows, separator=self.facts.get("separator"))
