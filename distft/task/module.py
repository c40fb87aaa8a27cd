"""A model with its loss inside, as engines wrap it: what every task's module is, and what it is handed."""

import json
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
from distft.model import attention
from distft.model.adapter import prompt, saved
from distft.model.adapter.saved import Beside
from distft.model.regularise import Regulariser
from distft.runtime.location import choose


@dataclass(frozen=True)
class Prompts:
    """Prompts to reply to, as token ids, one at a time."""

    ids: list[list[int]]
    max_new_tokens: int
    eos_ids: list[int]
    pad_id: int


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
    """A model (maybe under PEFT) with its loss inside: an engine wraps it whole, so that everything that touches
    parameters runs inside the root's forward pass."""

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

    def reply(self, prompts: Prompts) -> list[list[int]]:
        """Greedy replies, as token ids."""
        raise NotImplementedError

    def read_outside_its_module(self) -> list[nn.Parameter]:
        """Parameters that `loss` reads outside the forward pass of the module that owns them: ZeRO-3 has to know."""
        return []

    def forward(self, batch: Batch | Prompts) -> Any:
        """The one door that engines wrap: the loss in training, loss and outputs in evaluation, replies to prompts."""
        if isinstance(batch, Prompts):
            return self.reply(batch)
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
        if self.has_prompt:
            bounds = batch.document_ends, batch.max_document
            return prompt.hidden_states(self.model, batch.input_ids, batch.position_ids, *bounds, self.documents)
        return self.base.base_model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids + self._first_position(),
            **({"use_cache": False} if hasattr(self.base.config, "use_cache") else {}),
            **self._token_types(batch),
            **self.documents(batch.document_ends, batch.max_document),
        ).last_hidden_state

    def _first_position(self) -> int:
        """RoBERTa and its kin count positions from one past the padding token's id."""
        embeddings = getattr(getattr(self.base.base_model, "embeddings", None), "position_embeddings", None)
        padding = getattr(embeddings, "padding_idx", None)
        return 0 if padding is None else padding + 1

    def _token_types(self, batch: Batch) -> dict[str, Tensor]:
        """1 for what follows the first separator of its document: the second text of a pair."""
        separator = self.facts.get("separator")
        if separator is None:
            return {}
        separators = (batch.input_ids == separator).flatten().long()
        before = separators.cumsum(0) - separators
        starts, lengths = batch.document_ends[:-1].long(), batch.document_ends.diff().long()
        in_document = before - before[starts].repeat_interleave(lengths)
        return {"token_type_ids": in_document.clamp(max=1).view_as(batch.input_ids)}

    def documents(self, ends: Tensor, longest: int) -> dict[str, Any]:
        """The documents' boundaries in the words of the attention in use."""
        implementation = self.base.config._attn_implementation
        if implementation == attention.NAME:
            groups = None if ends.is_cuda else attention.length_groups(ends)
            return {"document_ends": ends, "document_groups": groups, "max_document": longest}
        if implementation.startswith("flash"):
            return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
        if any(getattr(module, "is_causal", True) is False for module in self.base.base_model.modules()):
            raise ConfigError(
                f"model.attention: must be varlen or flash_attention_2 for an encoder, whose documents lie side by "
                f"side without padding, got {implementation}; set model.attention=varlen"
            )
        return {}  # mask-based attention reads the boundaries off the positions, which restart

    @property
    def weights_file(self) -> str:
        """Stem of the file that holds what trains, as its readers expect it."""
        return saved.weights_file(self.model)

    def describe(self, source: schema.Model, adapter: schema.AnyAdapter) -> dict[str, str]:
        """The small files that make a folder of weights loadable, by name."""
        files = {}
        if self.facts:
            files[saved.FACTS] = json.dumps(self.facts, ensure_ascii=False, indent=2)
            files["config.json"] = self.base.config.to_json_string()
        return files | saved.describe(self.model, adapter, choose(source.source))

    def trainable(self) -> dict[str, nn.Parameter]:
        """What trains, by the name it has in a checkpoint."""
        return saved.trainable(self.model)

    def beside(self) -> Beside:
        """What lies beside it in the same file. Before an engine takes the module."""
        return saved.beside(self.model)
