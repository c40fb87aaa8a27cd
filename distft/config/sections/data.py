"""The section of the `data` group: which rows, and how they become batches."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import PositiveFloat, PositiveInt

from distft.config.keys import show
from distft.config.sections.section import Fraction, Section, problems_of, with_control_characters
from distft.runtime.location import locate


class Source(Section):
    path: str
    """Local file or folder, hub id, or `package://PKG/PATH`."""
    weight: PositiveFloat = 1.0
    """Passes over this source in one epoch: 2 twice, 0.5 a fixed half."""
    split: str = "train"
    """Split of a hub dataset."""
    subset: str | None = None
    """Configuration of a hub dataset."""
    format: str | None = None
    """One of the task's formats; null: inferred from the columns."""


class Data(Section):
    train: str | list[str | Source]
    eval: str | list[str | Source] | None = None
    """Held-out rows; null with `eval_fraction` 0: no evaluation."""
    eval_fraction: Fraction = 0.0
    """Share of `train` held out by a hash of each row's prompt: the same rows whatever the seed. Not beside `eval`."""
    replay: str | list[str | Source] | None = None
    """Older data that is mixed in, so that it is not forgotten. What `eval_fraction` holds out of it stays unseen."""
    replay_share: Fraction = 0.1
    """Of the rows of an epoch, those of `replay`: drawn by their hashes, or repeated where there are too few."""
    format: str | None = None
    """One of the task's formats; null: inferred from the columns."""
    chat_template: str | None = None
    """A Jinja file in place of the tokenizer's own template."""
    loss_on: Literal["assistant", "all"] = "assistant"
    """Tokens that are trained on: replies and completions, or every token."""
    max_length: PositiveInt = 2048
    """Tokens a row."""
    too_long: Literal["truncate", "drop"] = "truncate"
    packing: bool = True
    """Whole documents, isolated from each other, fill rows of `max_length`; false: one document a row, padded."""
    deduplicate: bool = False
    """Drop rows equal to an earlier one."""
    global_batch: PositiveInt = 8
    """Rows per optimizer step over all ranks."""
    micro_batch: PositiveInt = 1
    """Rows per rank per forward pass. Accumulation is derived."""
    num_workers: PositiveInt | None = None
    """Processes that tokenise; null: one a core."""
    cache_dir: str = "~/.cache/distft"
    """Where tokenised data is kept."""

    @property
    def sources(self) -> dict[str, list[Source]]:
        """What is named, by key."""
        given = {"train": self.train, "eval": self.eval, "replay": self.replay}
        return {key: listed(value) for key, value in given.items() if value is not None}

    @property
    def holds_out(self) -> bool:
        """Whether there are held-out rows."""
        return self.eval is not None or self.eval_fraction > 0

    def problems(self) -> Iterator[str]:
        for key, sources in self.sources.items():
            paths = [source.path for source in sources]
            if not paths or not all(path.strip() for path in paths):
                given = show(getattr(self, key))
                yield f"data.{key}: must name at least one source, got {given}; give data.{key}=my.jsonl"
            yield from (
                f"data.{key}: must hold no control characters, got {path!r}; rename it"
                for path in with_control_characters(paths)
            )
        if self.eval is not None and self.eval_fraction:
            yield (
                f"data.eval_fraction: must be 0 where data.eval is set, got {self.eval_fraction:g}; "
                "set data.eval_fraction=0 or data.eval=null"
            )
        if self.replay is None and self.replay_share != Data.model_fields["replay_share"].get_default():
            yield f"data.replay_share: belongs to data.replay, got {self.replay_share:g}; give data.replay=OLD.jsonl"
        if self.replay is not None and not self.replay_share:
            yield "data.replay_share: must be > 0 with data.replay, got 0; set data.replay=null to replay nothing"

    def missing(self) -> Iterator[str]:
        for key, sources in self.sources.items():
            for source in sources:
                if source.path.strip():
                    yield from problems_of(locate, source.path, f"data.{key}")
        template = self.chat_template
        if template is not None and not Path(template).expanduser().is_file():
            yield f"data.chat_template: must be a Jinja file that exists, got {template}; give its path, or null"


def listed(sources: str | Sequence[str | Source]) -> list[Source]:
    """The sources that a key names, each with all its keys."""
    each = [sources] if isinstance(sources, str) else sources
    return [Source(path=entry) if isinstance(entry, str) else entry for entry in each]
