"""The sections of the `task` group: what each task reads, what it measures, and its own keys.

A format is a set of columns; of two formats that fit a file, the first one is taken.
"""

from typing import ClassVar, Literal

from pydantic import PositiveFloat

from distft.config.section import Section

Formats = dict[str, tuple[str, ...]]

CHATS: Formats = {"chat": ("messages",), "prompt_completion": ("prompt", "completion"), "text": ("text",)}

LOWER_IS_BETTER = frozenset({"loss", "kl", "mse"})
"""Of all metrics; of the others the highest value is the best."""


class CausalLm(Section):
    FORMATS: ClassVar[Formats] = CHATS
    METRICS: ClassVar[tuple[str, ...]] = ()
    """What evaluation rows hold beside `loss`."""
    TOKEN_LOSS: ClassVar[bool] = True
    """Whether the loss is a token's cross-entropy, so that there is a perplexity."""
    REPLIES: ClassVar[bool] = True
    """Whether the model can be asked for replies to prompts (`evaluation.samples`)."""
    PACKAGES: ClassVar[dict[str, str]] = {}
    """Of the extra `metrics`: modules that it imports, and the packages they are in."""

    name: Literal["causal_lm"]


class SequenceClassification(Section):
    FORMATS: ClassVar[Formats] = {"labelled_pair": ("text_a", "text_b", "label"), "labelled": ("text", "label")}
    METRICS: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1", "micro_f1", "mse", "pearson", "spearman")
    TOKEN_LOSS: ClassVar[bool] = False
    REPLIES: ClassVar[bool] = False
    PACKAGES: ClassVar[dict[str, str]] = {"sklearn": "scikit-learn"}

    name: Literal["sequence_classification"]
    kind: Literal["auto", "single_label", "multi_label", "regression"] = "auto"
    """What a label is; `auto`: text is one class of several, a list is several classes at once, a number a value."""
    class_weights: Literal["none", "balanced"] | dict[str, PositiveFloat] = "none"
    """How much a row of a class counts in the loss; `balanced`: each class as much as any other."""


AnyTask = CausalLm | SequenceClassification
