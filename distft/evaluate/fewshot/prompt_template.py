"""A prompt of the user's: a Jinja file with a row's columns and the shots before it, and the words that answer it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from distft.config.keys import nearest
from distft.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SHOTS, ANSWER = "shots", "answer"
Row = Mapping[str, Any]


def environment() -> jinja2.Environment:
    """Blocks leave no line behind; what is not there is an error, not empty text; nothing of Python is in reach."""
    return ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)


@dataclass(frozen=True)
class Prompt:
    """`text` names the columns of a row as `{{ column }}`, and may loop over `shots`, which have an `answer` too."""

    file: str
    text: str
    label: str
    """The column that holds the label; the prompt must not show it."""
    words: Mapping[str, str]
    """What is said for a label; a label that is not here is said as it is."""

    @property
    def columns(self) -> list[str]:
        """Of a row, by the names in the text."""
        return sorted(meta.find_undeclared_variables(environment().parse(self.text)) - {SHOTS})

    def word(self, label: str) -> str:
        return self.words.get(label, label)

    def render(self, rows: Iterable[Row], shots: list[Row]) -> Iterator[str]:
        """The text of each row; the answer comes after it. Raises ConfigError for a column that a row does not have."""
        template = environment().from_string(self.text)
        said = [{**shot, ANSWER: self.word(str(shot[self.label]))} for shot in shots]
        for row in rows:
            shown = {name: value for name, value in row.items() if name != self.label}
            try:
                yield template.render({**shown, SHOTS: said})
            except jinja2.TemplateError as error:
                names = ", ".join(shown)
                raise ConfigError(
                    f"prompt: {self.file} must name columns of the data ({names}), got an error: {error.message}; "
                    f"a shot has its row's columns and {ANSWER!r}"
                ) from error


def check(file: str, shots: list[int], label: str, words: Mapping[str, str] | None) -> Iterator[str]:
    """What is wrong with a prompt, as far as it is known without the data. Imports no torch."""
    path = Path(file).expanduser()
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path()
        near = nearest(path.name, [entry.name for entry in folder.iterdir() if entry.is_file()])
        hint = f"did you mean prompt={folder / near}?" if near else "give the path of a Jinja file"
        yield f"prompt: must be a file that exists, got {file}; {hint}"
        return
    try:
        names = meta.find_undeclared_variables(environment().parse(path.read_text(encoding="utf-8")))
    except (jinja2.TemplateSyntaxError, UnicodeDecodeError) as error:
        where = f"line {error.lineno}: {error.message}" if isinstance(error, jinja2.TemplateSyntaxError) else str(error)
        yield f"prompt: must be a Jinja template, got {file}, {where}; correct that"
        return
    if label in names:
        yield f"prompt: must not show a row's label before it is asked for, got {{{{ {label} }}}} in {file}; remove it"
    if not names - {SHOTS, label}:
        yield f"prompt: must show a column of the row, got none in {file}; write {{{{ text }}}}, for example"
    if max(shots) > 0 and SHOTS not in names:
        yield (
            f"shots: must be 0 for a prompt that shows none, got {max(shots)} with {file}; "
            "loop over them there: {% for shot in shots %}...{{ shot.answer }}{% endfor %}"
        )
    said = list((words or {}).values())
    if twice := sorted({word for word in said if said.count(word) > 1}):
        yield f"answers.words: must differ from label to label, got {', '.join(twice)} more than once; change one"


@dataclass(frozen=True)
class Question:
    """A row as the model reads it: the tokens that come before any answer, and each answer's own tokens after them."""

    number: int
    prompt: list[int]
    answers: list[list[int]]
    scored_from: list[int]
    """Where in each of `answers` the answer begins: later than 0 where the tokens before it depend on the answer."""


def questions(
    prompts: list[str], words: list[str], tokenizer: "PreTrainedTokenizerFast", chat: bool
) -> Iterator[Question]:
    """Every prompt with every word after it, tokenised as one text, as it would stand in a document.

    After a line break, and in a chat, a word follows at once; else after one space, which is the word's own.
    """
    contexts = [_in_chat(prompt, tokenizer) if chat else prompt.rstrip(" ") for prompt in prompts]
    for number, context in enumerate(contexts):
        between = "" if chat or not context or context.endswith("\n") else " "
        texts = [context + between + word for word in words]
        encoded = tokenizer(texts, add_special_tokens=not chat, return_offsets_mapping=True, verbose=False)
        rows, firsts = [], []
        for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            inside = [i for i, (_, end) in enumerate(offsets) if end > len(context)]
            rows.append(ids[: inside[-1] + 1])  # some tokenizers end a text with a token of their own
            firsts.append(inside[0])
        shared = min(firsts)
        while any(row[:shared] != rows[0][:shared] for row in rows):
            shared -= 1
        if not shared:
            raise ConfigError(
                f"prompt: must show at least a token before the answer, got {context!r} for row {number + 1}"
            )
        answers, scored = [row[shared:] for row in rows], [first - shared for first in firsts]
        yield Question(number, rows[0][:shared], answers, scored)


def openings(prompts: list[str], tokenizer: "PreTrainedTokenizerFast", chat: bool) -> list[list[int]]:
    """The prompts alone, for a model that is to go on."""
    texts = [_in_chat(prompt, tokenizer) if chat else prompt.rstrip(" ") for prompt in prompts]
    encoded = tokenizer(texts, add_special_tokens=not chat, return_offsets_mapping=True, verbose=False)
    return [
        ids[: max((i for i, (start, end) in enumerate(offsets) if end > start), default=-1) + 1]
        for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


def match(reply: str, words: list[str]) -> int:
    """Which word a reply begins with, the longest of several, whatever its capitals; -1: none."""
    said = reply.strip().casefold()
    fitting = [i for i, word in enumerate(words) if said.startswith(word.casefold())]
    return max(fitting, key=lambda i: len(words[i]), default=-1)


def _in_chat(text: str, tokenizer: "PreTrainedTokenizerFast") -> str:
    from distft.task.chat import Template

    message = [{"role": "user", "content": text}]
    template = Template(tokenizer).chat_template()
    return str(
        tokenizer.apply_chat_template(message, chat_template=template, tokenize=False, add_generation_prompt=True)
    )
