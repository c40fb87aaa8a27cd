"""Replies to a few held-out prompts, before and after training."""

import json
from pathlib import Path
from typing import Any

from distft.config.schema import Evaluation
from distft.engine.seam import Engine
from distft.runtime.group import Group
from distft.task.generate import Prompts
from distft.tracking.seam import Sample


class Samples:
    """The replies before training are kept in the run folder: a resumed run has no untrained model to ask.

    Every rank calls every method: a sharded model replies on all of them.
    """

    def __init__(
        self, engine: Engine, chats: list[list[dict]], tokenizer: Any, settings: Evaluation, folder: Path, group: Group
    ):
        self.engine, self.tokenizer, self.group = engine, tokenizer, group
        self.chats = chats[: settings.samples] if tokenizer.chat_template else []
        self.max_new_tokens = settings.max_new_tokens
        self.file = folder / "samples.json"

    def before(self) -> None:
        replies = self.replies()
        if self.group.ranks.is_main and self.chats:
            self.file.write_text(json.dumps(replies), encoding="utf-8")

    def after(self) -> list[Sample]:
        replies = self.replies()
        before = json.loads(self.file.read_text(encoding="utf-8")) if self.file.exists() else [""] * len(replies)
        return [
            Sample(chat[-2]["content"], chat[-1]["content"], first, then)
            for chat, first, then in zip(self.chats, before, replies, strict=True)
        ]

    def replies(self) -> list[str]:
        """What the model says now."""
        if not self.chats:
            return []
        ids = [
            self.tokenizer.apply_chat_template(chat[:-1], add_generation_prompt=True, return_dict=False)
            for chat in self.chats
        ]
        prompts = Prompts(ids, self.max_new_tokens, [self.tokenizer.eos_token_id], self.tokenizer.pad_token_id)
        return [
            self.tokenizer.decode(reply, skip_special_tokens=True).strip() for reply in self.engine.generate(prompts)
        ]
