"""Held-out rows asked through a prompt: their questions, and how likely a model finds each answer."""

from collections.abc import Iterator
from typing import cast

import numpy as np
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from distft.config.schema import Config
from distft.data.loader import Batch
from distft.evaluate.fewshot.choice import check_context
from distft.evaluate.fewshot.prompt_template import match, openings, questions
from distft.evaluate.fewshot.rows import Labelled, draw, read
from distft.evaluate.fewshot.settings import Wanted
from distft.evaluate.fewshot.tree import longest, trees
from distft.evaluate.results import Numbers
from distft.model.load import read_hf_config
from distft.model.tokenizer import load_tokenizer
from distft.session.session import Session
from distft.task import classification
from distft.task.generate import Prompts


class Asked:
    """The held-out rows with a number of shots before them."""

    def __init__(self, labelled: Labelled, wanted: Wanted, shots: int, tokenizer: PreTrainedTokenizerFast):
        self.labelled, self.shots, self.answers, self.tokenizer = labelled, shots, wanted.answers, tokenizer
        self.words = [wanted.prompt.word(label) for label in labelled.labels]
        drawn = draw(labelled, wanted.prompt, shots, wanted.seed)
        prompts = list(wanted.prompt.render(labelled.held_out, drawn))
        self.questions = list(questions(prompts, self.words, tokenizer, wanted.answers.chat))
        self.openings = (
            openings(prompts, tokenizer, wanted.answers.chat) if wanted.answers.scoring == "generation" else []
        )

    def check(self, context: PretrainedConfig) -> None:
        check_context(context, longest(self.questions))

    def chances(self, session: Session) -> np.ndarray:
        """float64 [rows, labels]: how likely each answer is among them; of replies, 1 for the one that was given."""
        return self._written(session) if self.openings else self._likely(session)

    def numbers(self, chances: np.ndarray) -> Numbers:
        truth, found = self.labelled.truth, chances.argmax(1)
        none = chances.sum(1) == 0
        numbers = classification.numbers(truth, np.where(none, -1, found))
        if self.openings:
            return {**numbers, "unmatched": float(none.mean())}
        loss = -np.log(np.maximum(chances[np.arange(len(truth)), truth], np.finfo(np.float64).tiny)).mean()
        return {"loss": float(loss), **numbers}

    def _likely(self, session: Session) -> np.ndarray:
        mine: dict[int, np.ndarray] = {}
        ranks = session.group.ranks
        for tree in trees(self.questions, ranks.global_rank, ranks.world_size):
            _, likelihoods = session.engine.evaluate(cast(Batch, tree))  # has what is read of one
            mine.update(zip(tree.documents, likelihoods, strict=True))
        everyone = {number: row for share in session.group.gather(mine) for number, row in share.items()}
        chances = np.stack([everyone[number] for number in range(len(self.questions))])
        if self.answers.per_token:
            chances = chances / np.array(list(self._answer_tokens()))
        chances = np.exp(chances - chances.max(1, keepdims=True))
        return chances / chances.sum(1, keepdims=True)

    def _answer_tokens(self) -> Iterator[list[int]]:
        for each in self.questions:
            yield [len(tokens) - first for tokens, first in zip(each.answers, each.scored_from, strict=True)]

    def _written(self, session: Session) -> np.ndarray:
        most = max(max(counts) for counts in self._answer_tokens())
        asked = Prompts(self.openings, most + 2, [self.tokenizer.eos_token_id], self.tokenizer.pad_token_id)
        chances = np.zeros((len(self.questions), len(self.words)))
        for row, reply in zip(chances, session.engine.generate(asked), strict=True):
            found = match(self.tokenizer.decode(reply, skip_special_tokens=True), self.words)
            if found >= 0:
                row[found] = 1
        return chances


def ask(config: Config, wanted: Wanted) -> list[Asked]:
    """The held-out rows with each number of shots. Raises ConfigError where data, prompt or context do not fit."""
    labelled = read(config.data, wanted.prompt, max(wanted.shots) > 0)
    tokenizer = load_tokenizer(config.model, config.data.chat_template)
    asked = [Asked(labelled, wanted, shots, tokenizer) for shots in wanted.shots]
    context = read_hf_config(config.model)
    for each in asked:
        each.check(context)
    return asked
