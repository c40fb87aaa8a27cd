"""Questions as one tree of tokens: the shots at the root, a branch a row, a leaf an answer.

One forward pass reads every token once, however many answers share it (SpecInfer's tree attention, arXiv:2305.09781):
a token attends to those on its way to the root, and has the position that it would have in a text of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distft.evaluate.fewshot.prompt_template import Question

TOKENS = 2048
"""Of a tree, unless one row alone has more."""


@dataclass(frozen=True)
class Tree:
    """A batch of questions with N tokens in M nodes, and T tokens whose likelihood is asked for."""

    input_ids: Tensor
    """int64 [1, N]"""
    position_ids: Tensor
    """int64 [1, N]"""
    nodes: Tensor
    """int64 [N]: the node of each token."""
    visible: Tensor
    """bool [M, M]: whether a node's tokens see those of another."""
    at: Tensor
    """int64 [T]: the token that predicts."""
    goals: Tensor
    """int64 [T]: the token to predict."""
    answers: Tensor
    """int64 [T]: the answer it is of, counted through the questions."""
    num_answers: int
    """Of a question."""
    documents: tuple[int, ...]
    """The questions' numbers."""
    seed: int = 0
    """As every batch has one; nothing is drawn in an evaluation."""

    @property
    def document_ends(self) -> Tensor:
        """int32 [2]: all is one document; `visible` says what of it sees what."""
        return torch.tensor([0, len(self.nodes)], dtype=torch.int32, device=self.nodes.device)

    def to(self, device: torch.device | str) -> "Tree":
        moved: dict[str, Any] = {n: value.to(device) for n, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)

    def mask(self) -> Tensor:
        """bool [1, 1, N, N]: which tokens see which."""
        order = torch.arange(len(self.nodes), device=self.nodes.device)
        sees = self.visible[self.nodes][:, self.nodes] & (order <= order[:, None])
        return sees[None, None]


def longest(questions: list[Question]) -> int:
    """Tokens of the longest text from root to leaf."""
    return max(len(each.prompt) + max(map(len, each.answers)) for each in questions)


def trees(questions: list[Question], global_rank: int, world_size: int) -> Iterator[Tree]:
    """This rank's share of the trees, equally many on every rank: where they run out, the last one stands in."""
    shared = _num_shared([each.prompt[:-1] for each in questions])
    groups: list[list[Question]] = []
    room = 0
    for each in questions:
        size = len(each.prompt) - shared + sum(map(len, each.answers))
        if size > room:
            groups.append([])
            room = TOKENS - shared
        groups[-1].append(each)
        room -= size
    for number in range(global_rank, -(-len(groups) // world_size) * world_size, world_size):
        yield grow(groups[min(number, len(groups) - 1)], shared)


def grow(questions: list[Question], shared: int) -> Tree:
    """The tree of questions whose prompts have their first `shared` tokens in common."""
    ids: list[int] = []
    positions: list[int] = []
    nodes: list[int] = []
    ways: list[list[int]] = []  # from each node to the root

    def add(tokens: list[int], position: int, parents: list[int]) -> list[int]:
        """Their places."""
        ways.append([*parents, len(ways)])
        first = len(ids)
        ids.extend(tokens)
        positions.extend(range(position, position + len(tokens)))
        nodes.extend([len(ways) - 1] * len(tokens))
        return list(range(first, len(ids)))

    at, goals, answers = [], [], []
    add(questions[0].prompt[:shared], 0, [])
    for number, each in enumerate(questions):
        end = add(each.prompt[shared:], shared, ways[0])[-1]
        way = ways[-1]
        for choice, (tokens, first) in enumerate(zip(each.answers, each.scored_from, strict=True)):
            before = [end, *add(tokens, len(each.prompt), way)]
            at += before[first : len(tokens)]
            goals += tokens[first:]
            answers += [number * len(each.answers) + choice] * (len(tokens) - first)
    visible = np.zeros((len(ways), len(ways)), bool)
    for node, way in enumerate(ways):
        visible[node, way] = True
    return Tree(
        torch.tensor([ids]),
        torch.tensor([positions]),
        torch.tensor(nodes),
        torch.from_numpy(visible),
        torch.tensor(at),
        torch.tensor(goals),
        torch.tensor(answers),
        len(questions[0].answers),
        tuple(each.number for each in questions),
    )


def _num_shared(prompts: list[list[int]]) -> int:
    """Tokens that all begin with: what the first and the last in order begin with."""
    first, last = min(prompts), max(prompts)
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
