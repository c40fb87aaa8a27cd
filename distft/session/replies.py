"""Replies to a few held-out prompts, before and after training."""

import json
from pathlib import Path

from distft.runtime.files import write_whole
from distft.session.session import Session
from distft.session.task_data import TaskData
from distft.task.generate import Prompts
from distft.task.reply_end import reply_ends
from distft.tracking.seam import Sample

FILE = "samples.json"


class Replies:
    """The model's replies to the first `evaluation.samples` held-out chats; none without a chat template.

    Every rank calls every method: a sharded model replies on all of them.
    """

    def __init__(self, session: Session, data: TaskData):
        self.session, self.tokenizer = session, data.tokenizer
        settings = session.config.evaluation
        self.chats = data.prepared.prompts[: settings.samples] if data.tokenizer.chat_template else []
        self.max_new_tokens = settings.max_new_tokens

    def now(self) -> list[str]:
        """What the model says now."""
        if not self.chats:
            return []
        tokenizer = self.tokenizer
        ids = [
            tokenizer.apply_chat_template(chat[:-1], add_generation_prompt=True, return_dict=False)
            for chat in self.chats
        ]
        prompts = Prompts(ids, self.max_new_tokens, reply_ends(tokenizer), tokenizer.pad_token_id)
        replies = self.session.engine.generate(prompts)
        return [tokenizer.decode(reply, skip_special_tokens=True).strip() for reply in replies]

    def keep(self, run: Path) -> None:
        """Keeps today's replies in the run folder: a resumed run has no untrained model to ask."""
        replies = self.now()
        if self.session.group.ranks.is_main and self.chats:
            write_whole(run / FILE, json.dumps(replies))

    def beside_kept(self, run: Path) -> list[Sample]:
        """Today's replies beside those that were kept."""
        now = self.now()
        file = run / FILE
        before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else [""] * len(now)
        return self.compared(before, now)

    def compared(self, before: list[str], after: list[str]) -> list[Sample]:
        """Two replies to each chat beside its last message, the reference."""
        return [
            Sample(chat[-2]["content"], chat[-1]["content"], first, then)
            for chat, first, then in zip(self.chats, before, after, strict=True)
        ]
