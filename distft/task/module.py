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
from distft.errors import ConfigError
from distft.model import packed
from distft.model.adapter import prompt
from distft.model.regularise import Regulariser
from distft.task.generate import Prompts, greedy_replies
from distft.task.lm_head import Finish, LmHead, measure_finish, states_before_head
from distft.task.trial import Settled, settle

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
        self.switched_off, self.padded = False, False
        self.settled: Settled | None = None
        """How documents are run; null: nothing has been run yet."""
        self.finish = Finish()
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
        if self.settled is None and not isinstance(batch, Prompts):
            self.settle(batch.input_ids.device)
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

    def settle(self, device: torch.device, rows: list[Tensor] | None = None) -> None:
        """Finds the way to run documents by, on `rows` (token ids [L]) or made-up ones; every rank calls it.

        Raises ConfigError where the model can be run in none.
        """
        self.regulariser.begin(False, 0, torch.zeros(1, device=device))
        with self.evaluating(), torch.autocast(device.type, self.compute, enabled=self.compute != torch.float32):
            self.settled = settle(self, rows)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Every module in it without dropout meanwhile."""
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode

    @property
    def head(self) -> LmHead:
        """The language model's output layer."""
        return LmHead(self.base, self.finish)

    def own(self, document: Tensor) -> Tensor:
        """What the model itself makes of a document [L] alone: logits [L, V], or last hidden states [L, H]."""
        inputs = {"input_ids": document.unsqueeze(0), **packed.without_cache(self.base)}
        if self.base.get_output_embeddings() is None:
            return self.base.base_model(**inputs).last_hidden_state[0]
        finish = measure_finish(self.base, **inputs)
        if finish is None:
            raise ConfigError(
                f"model.source: must be a model whose logits are its output layer's values, scaled, capped or shifted, "
                f"got a {self.base.config.model_type}; take another model"
            )
        self.finish = finish
        return self.base(**inputs).logits[0]

    def made(self, batch: Batch) -> Tensor:
        """The same of the tokens of a batch as they are trained on, one after the other."""
        states = self._documents(batch).flatten(0, 1)
        return states if self.base.get_output_embeddings() is None else self.head.logits(states)

    def encode(self, batch: Batch) -> Tensor:
        """Hidden states [B, S, H] of the packed batch, as the output layer takes them; no document sees another one."""
        if self.has_prompt:
            rows = batch.input_ids, batch.position_ids, batch.document_ends, batch.max_document
            return prompt.hidden_states(self.model, self._states, *rows, padded=self.padded)
        return self._documents(batch)

    def _documents(self, batch: Batch) -> Tensor:
        separator = self.facts.get("separator")
        if self.padded:
            embeds = self.regulariser.knows_rows
            return packed.one_a_row(
                self.base, self._states, batch.input_ids, batch.document_ends, separator=separator, embeds=embeds
            )
        rows = batch.input_ids, batch.position_ids, batch.document_ends, batch.max_document
        return packed.side_by_side(self.base, self._states, *rows, separator=separator)

    def _states(self, **inputs: Any) -> Tensor:
        if self.base.get_output_embeddings() is None:
            return self.base.base_model(**inputs).last_hidden_state
        states = states_before_head(self.base, **inputs)
        return states if self.compute == torch.float32 else states.to(self.compute)
