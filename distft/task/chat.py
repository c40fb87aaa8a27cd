"""A row of text to a document: token ids, and which of them are supervised."""

import bisect
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import jinja2
import numpy as np

from distft.config.schema import CausalLm
from distft.data.document import NEXT_TOKEN, Document, Malformed, Reading, Seen, Unusable, check_unicode, short
from distft.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Span = tuple[int, int]

COLUMNS = CausalLm.traits.formats

SENTINEL = "\ue0d1"  # private use: no template writes it
# Llama 3.2 and gpt-oss write today's date: the same rows would be other tokens tomorrow, after a restart.
FIXED_DATE = (
    '{%- macro strftime_now(format) -%}{{ {"%d %b %Y": "26 Jul 2024"}.get(format, "2024-07-26") }}{%- endmacro -%}'
)
TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError)


@dataclass(frozen=True)
class _Rendered:
    text: str
    spans: list[Span]
    """Characters that are supervised; one past the text stands for its end-of-sequence token."""


class Template:
    """The reader of causal tasks: rows to documents, by the tokenizer's own chat template where rows are chats."""

    formats = COLUMNS
    chat_formats = frozenset({"chat", "prompt_completion"})
    layout = NEXT_TOKEN
    facts: dict[str, Any] = {}

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", loss_on: Literal["assistant", "all"] = "assistant"):
        self.tokenizer = tokenizer
        self.loss_on = loss_on
        added = tokenizer.added_tokens_decoder.items()
        self.special = {token_id for token_id, token in added if token.special} | set(tokenizer.all_special_ids)

    def options(self) -> dict[str, Any]:
        return {"loss_on": self.loss_on, "chat_template": self.tokenizer.chat_template}

    def learn(self, rows: Iterable[Seen]) -> "Template":
        return self

    def question(self, row: dict, format: str) -> str:
        return prompt_text(row, format)

    def chat(self, row: dict, format: str) -> list[dict] | None:
        if not is_chat(row, format):
            return None
        return row["messages"] if format == "chat" else row["prompt"] + row["completion"]

    def documents(self, rows: list[dict], format: str) -> list[Reading]:
        """One result a row, in order; the text of all rows is tokenised in one call."""
        results: list[Any] = [self._attempt(row, format) for row in rows]
        waiting = [i for i, result in enumerate(results) if isinstance(result, _Rendered)]
        for chat in (True, False):
            group = [i for i in waiting if is_chat(rows[i], format) is chat]
            if group:  # a chat template writes its special tokens itself, plain text gets those of the tokenizer
                texts = [results[i].text for i in group]
                encoded = self.tokenizer(texts, add_special_tokens=not chat, return_offsets_mapping=True, verbose=False)
                for i, ids, offsets in zip(group, encoded["input_ids"], encoded["offset_mapping"], strict=True):
                    results[i] = self._document(ids, offsets, results[i].spans, chat)
        return [[result] if isinstance(result, Document) else result for result in results]

    def _attempt(self, row: dict, format: str) -> Document | _Rendered | Malformed | Unusable:
        try:
            check(row, format)
            if format == "text":
                return _Rendered(row["text"], [(0, len(row["text"]) + 1)])
            if not is_chat(row, format):
                text = row["prompt"] + row["completion"]
                return _Rendered(text, [(len(row["prompt"]), len(text) + 1)])
            return self._chat(row, format)
        except (Malformed, Unusable) as error:
            return error

    def _chat(self, row: dict, format: str) -> Document | _Rendered:
        context = row["prompt"] if format == "prompt_completion" else []
        messages = row["messages"] if format == "chat" else context + row["completion"]
        template = self.chat_template(row.get("tools"))
        if self.loss_on == "assistant" and marks_generation(template) and not context:
            return self._marked_chat(messages, template, row.get("tools"))
        text = self._render(messages, template, row.get("tools"))
        if self.loss_on == "all":
            return _Rendered(text, [])
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant" and i >= len(context)]
        return _Rendered(text, [self._span(text, messages, i, template, row.get("tools")) for i in turns])

    def _marked_chat(self, messages: list[dict], template: str, tools: Any) -> Document:
        options = {"return_dict": True, "return_assistant_tokens_mask": True}
        encoded = self._render(messages, template, tools, tokenize=True, **options)
        supervised = np.array(encoded["assistant_masks"], bool)
        return _first_unsupervised(np.array(encoded["input_ids"], np.int32), supervised)

    def _span(self, text: str, messages: list[dict], turn: int, template: str, tools: Any) -> Span:
        """The characters of `text` that the assistant writes in `turn`.

        The turn is rendered once more with a sentinel in its place: what both renderings share before and after it is
        the frame. Where the template has an opening for generation, the span starts there, so that text which the
        model itself has to write (an empty `<think>` block, say) is in it.
        """
        probe = [*messages[:turn], {"role": "assistant", "content": SENTINEL}, *messages[turn + 1 :]]
        framed = self._render(probe, template, tools)
        if SENTINEL not in framed:
            raise Unusable("the chat template leaves out an assistant turn")
        start = _common_prefix(text, framed)
        end = len(text) - _common_prefix(text[start:][::-1], framed[start:][::-1])
        if turn and "add_generation_prompt" in template:
            opening = self._render(messages[:turn], template, tools, add_generation_prompt=True)
            if len(opening) <= start and text.startswith(opening):
                return len(opening), end
        # A space before the reply is the first token's own ("[/INST] Hello" of Mistral): else that is lost.
        return len(text[:start].rstrip(" ")), end

    def _render(self, messages: list[dict], template: str, tools: Any, **options: Any) -> Any:
        options = {"tokenize": False, **options}
        try:
            return self.tokenizer.apply_chat_template(messages, chat_template=template, tools=tools, **options)
        except TEMPLATE_ERRORS as error:
            raise Unusable(f"refused by the chat template: {error}") from error

    def chat_template(self, tools: Any = None) -> str:
        """The tokenizer's chat template, with the date held fixed. Raises ConfigError if it has none."""
        try:
            template = self.tokenizer.get_chat_template(None, tools)
        except ValueError as error:
            message = "must be a Jinja file where the tokenizer has no chat template, got null"
            raise ConfigError(f"data.chat_template: {message}; or use the -Instruct variant of the model") from error
        return FIXED_DATE + template if "strftime_now" in template else template

    def _document(self, ids: list[int], offsets: list[Span], spans: list[Span], chat: bool) -> Document:
        starts = [start for start, _ in offsets]
        if not chat and (eos := self.tokenizer.eos_token_id) is not None:
            if ids[-1:] != [eos]:  # some tokenizers have added it
                ids, starts = [*ids, eos], [*starts, 0]
            starts[-1] = spans[-1][1] - 1
        supervised = np.full(len(ids), self.loss_on == "all")
        for start, end in spans:
            first, last = bisect.bisect_left(starts, start), bisect.bisect_left(starts, end)
            supervised[first : self.end_of_turn(ids, last)] = True
        return _first_unsupervised(np.array(ids, np.int32), supervised)

    def end_of_turn(self, ids: list[int], at: int) -> int:
        """One past the special token that closes the turn before `at`, whitespace between allowed; else `at`."""
        for i in range(at, len(ids)):
            if ids[i] in self.special:
                return i + 1
            if str(self.tokenizer.decode([ids[i]])).strip():
                break
        return at


def is_chat(row: dict, format: str) -> bool:
    """True if the chat template renders this row."""
    return format == "chat" or (format == "prompt_completion" and isinstance(row["prompt"], list))


def marks_generation(template: str) -> bool:
    return re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None


def check(row: dict, format: str) -> None:
    """Raises Malformed unless `row` has what its format wants."""
    missing = [column for column in COLUMNS[format] if row.get(column) is None]
    if missing:
        raise Malformed(f"must have {' and '.join(map(repr, missing))}, got {sorted(row)}")
    values = [row[column] for column in COLUMNS[format]]
    if format == "prompt_completion" and type(values[0]) is not type(values[1]):
        raise Malformed("'prompt' and 'completion' must be both strings or both lists of messages")
    for column, value in zip(COLUMNS[format], values, strict=True):
        if format != "chat" and isinstance(value, str):
            check_unicode(value, column)
        elif format != "text" and isinstance(value, list) and value:
            for message in value:
                check_message(message, column)
        else:
            wanted = {"chat": "a list of messages", "text": "a string"}.get(format, "a string or a list of messages")
            raise Malformed(f"{column!r} must be {wanted}, got {short(value)}")


def check_message(message: Any, column: str) -> None:
    """Raises Malformed unless it is a message of a chat."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise Malformed(
            f"every message of {column!r} must be an object with 'role' and 'content', got {short(message)}"
        )
    content = message.get("content")
    if isinstance(content, str):
        check_unicode(content, column)
    elif not (isinstance(content, list) or (content is None and message.get("tool_calls"))):
        raise Malformed(f"a message's 'content' must be a string, got {short(message)}")


def prompt_text(row: dict, format: str) -> str:
    """What the row asks, in lower case with single spaces: rows with equal prompts stay in one split."""
    value = row[COLUMNS[format][0]]
    if isinstance(value, list):
        value = next((m.get("content") for m in value if m["role"] == "user"), value[0].get("content"))
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return " ".join(text.lower().split())


def _first_unsupervised(ids: np.ndarray, supervised: np.ndarray) -> Document:
    supervised[:1] = False
    return Document(ids, supervised)


def _common_prefix(a: str, b: str) -> int:
    """Length of the longest common prefix; by bisection, since comparing slices is C and a loop here is not."""
    longest = min(len(a), len(b))
    return bisect.bisect_left(range(1, longest + 1), True, key=lambda n: a[:n] != b[:n])
