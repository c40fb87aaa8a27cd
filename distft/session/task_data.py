"""The data of a run as its task reads it, before any rank waits for another."""

from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerFast

from distft.config import schema
from distft.data.prepare import Poll, Prepared, alone, prepare
from distft.errors import ConfigError
from distft.model import load as model
from distft.model.architecture import Architecture
from distft.model.load import Loaded
from distft.model.tokenizer import load_tokenizer
from distft.task import build as tasks
from distft.task.module import TaskModule
from distft.task.seam import Task


@dataclass(frozen=True)
class TaskData:
    """A task, what it read, and the model that it makes of a base for that."""

    task: Task
    tokenizer: PreTrainedTokenizerFast
    prepared: Prepared

    @property
    def facts(self) -> dict[str, Any]:
        return self.prepared.facts

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_token_id

    @property
    def architecture(self) -> Architecture:
        return self.task.architecture(self.facts)

    def module(self, loaded: Loaded) -> TaskModule:
        return self.task.module(loaded, self.facts)

    def of_another(self, data: schema.Data, path: str, poll: Poll) -> "TaskData":
        """The dataset at `path`, held out as a whole, read as this one was."""
        whole = alone(data, path)
        reader = self.task.reader(self.tokenizer, whole, self.facts)
        return replace(self, prepared=prepare(whole, reader, poll=poll))


def read(config: schema.Config, facts: dict[str, Any] | None = None, poll: Poll = lambda: None) -> TaskData:
    """The data of `config`, tokenised. `facts`: what a trained run learnt of its data, in place of learning it here.

    `poll` is called while it is made, and may raise. Raises ConfigError for what is wrong with data or model.
    """
    model.check(config.model, config.data.max_length)
    tokenizer = load_tokenizer(config.model, config.data.chat_template)
    task = tasks.build(config.task)
    return TaskData(task, tokenizer, prepare(config.data, task.reader(tokenizer, config.data, facts), poll=poll))


def read_held_out(config: schema.Config, facts: dict[str, Any] | None) -> TaskData:
    """What a trained run is to be measured on. Raises ConfigError where nothing is held out."""
    data = read(config, facts)
    if data.prepared.eval is None:
        raise ConfigError("data.eval: must be set where the run held nothing out; give data.eval=my.jsonl")
    return data
