"""The sections of the `tracking` group: where the rows of metrics.jsonl are mirrored."""

from typing import ClassVar, Literal

from distft.config.sections.section import Section


class NoTracking(Section):
    package: ClassVar[str] = ""

    name: Literal["none"]


class Wandb(Section):
    package: ClassVar[str] = "wandb"

    name: Literal["wandb"]
    project: str = "distft"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = []


class Tensorboard(Section):
    package: ClassVar[str] = "tensorboard"

    name: Literal["tensorboard"]


AnyTracking = NoTracking | Wandb | Tensorboard
