"""A causal model that chooses: the log-likelihood of each answer to each question of a tree."""

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig

from distft.data.loader import Batch
from distft.errors import ConfigError
from distft.evaluate.fewshot.tree import Tree
from distft.model.packed import first_position
from distft.task.module import TaskModule


class Chooser(TaskModule):
    """Evaluates trees; engines take it for any other task's module."""

    def evaluate(self, batch: Batch | Tree) -> tuple[Tensor, list[np.ndarray]]:
        """Minus the sum of all log-likelihoods; and of each question float64 [answers], the log-likelihoods."""
        assert isinstance(batch, Tree)
        tree = batch
        states = self._read(tree)[0]
        losses = self.head.losses(states.index_select(0, tree.at), tree.goals)
        totals = losses.new_zeros(len(tree.documents) * tree.num_answers).index_add_(0, tree.answers, losses)
        likelihoods = -totals.double().cpu().numpy().reshape(len(tree.documents), tree.num_answers)
        return totals.sum(), list(likelihoods)

    def _read(self, tree: Tree) -> Tensor:
        """Last hidden states [1, N, H]."""
        if self.padded:
            raise ConfigError(
                f"shots: must be asked of a model whose attention alone joins tokens, got a "
                f"{self.base.config.model_type}, whose layers carry a state on; take another model"
            )
        usual, mask = self.base.config._attn_implementation, tree.mask()
        if self.base._supports_sdpa:
            self.base.set_attn_implementation("sdpa")  # takes a mask as it is
        else:  # and this one adds it
            self.base.set_attn_implementation("eager")
            mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill_(~mask, torch.finfo(torch.float32).min)
        states = self._states(
            input_ids=tree.input_ids,
            position_ids=tree.position_ids + first_position(self.base),
            attention_mask=mask,
            use_cache=False,
        )
        self.base.set_attn_implementation(usual)
        return states


def check_context(config: PretrainedConfig, longest: int) -> None:
    """Raises ConfigError where the longest text is longer than what the model can attend to as a whole."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    limits = [limit for limit in (getattr(config, "max_position_embeddings", None), window) if limit]
    if limits and longest > min(limits):
        raise ConfigError(
            f"shots: prompt and answer must fit the model's context of {min(limits):,} tokens, got {longest:,}; "
            "give fewer shots, or a shorter prompt"
        )
