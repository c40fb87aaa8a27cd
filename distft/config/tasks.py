"""The sections of the `task` group: what each task reads, what it measures, and its own keys.

A format is a set of columns; of two formats that fit a file, the first one is taken.
"""

from typing import ClassVar, Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

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


class TokenClassification(Section):
    FORMATS: ClassVar[Formats] = {"tagged": ("tokens", "tags")}
    METRICS: ClassVar[tuple[str, ...]] = ("precision", "recall", "f1", "accuracy", "macro_f1", "micro_f1")
    TOKEN_LOSS: ClassVar[bool] = False
    REPLIES: ClassVar[bool] = False
    PACKAGES: ClassVar[dict[str, str]] = {"sklearn": "scikit-learn", "seqeval": "seqeval"}

    name: Literal["token_classification"]
    scheme: Literal["auto", "bio", "bioes", "plain"] = "auto"
    """How tags make entities; `plain`: they make none. `auto`: as the tags look."""
    stride: NonNegativeInt = 32
    """Tokens that a window of a long sentence repeats of the one before it, as context."""


class RelationExtraction(Section):
    FORMATS: ClassVar[Formats] = {"relation": ("text", "subject", "object", "label")}
    METRICS: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1", "micro_f1")
    TOKEN_LOSS: ClassVar[bool] = False
    REPLIES: ClassVar[bool] = False
    PACKAGES: ClassVar[dict[str, str]] = {"sklearn": "scikit-learn"}

    name: Literal["relation_extraction"]


class ExtractiveQa(Section):
    FORMATS: ClassVar[Formats] = {"extractive_qa": ("question", "context", "answers")}
    METRICS: ClassVar[tuple[str, ...]] = ("exact_match", "f1")
    TOKEN_LOSS: ClassVar[bool] = False
    REPLIES: ClassVar[bool] = False
    PACKAGES: ClassVar[dict[str, str]] = {}

    name: Literal["extractive_qa"]
    stride: PositiveInt = 128
    """Tokens that two neighbouring windows of a long context share."""
    max_answer: PositiveInt = 30
    """Most tokens of an answer that is looked for."""
    no_answer: bool = False
    """Whether a question may have no answer in its context (SQuAD 2.0)."""
    no_answer_margin: float = 0.0
    """How much better than the best span "no answer" must score to be given."""


class Seq2Seq(Section):
    FORMATS: ClassVar[Formats] = {"source_target": ("source", "target")}
    METRICS: ClassVar[tuple[str, ...]] = ("bleu", "chrf", "rouge_l")
    TOKEN_LOSS: ClassVar[bool] = True
    REPLIES: ClassVar[bool] = False
    PACKAGES: ClassVar[dict[str, str]] = {"sacrebleu": "sacrebleu", "rouge_score": "rouge-score"}

    name: Literal["seq2seq"]
    prefix: str = ""
    """Text before every source, such as `translate English to German: `."""
    max_target: PositiveInt = 128
    """Most tokens of a target; longer ones are cut. `data.max_length` holds source and target together."""
    num_beams: PositiveInt = 1
    """Beams of the generation that is scored; 1: greedy."""
    max_new_tokens: PositiveInt = 64
    """Most tokens that are generated."""


AnyTask = CausalLm | SequenceClassification | TokenClassification | RelationExtraction | ExtractiveQa | Seq2Seq
