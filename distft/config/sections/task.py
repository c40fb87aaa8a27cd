"""The sections of the `task` group: what each task reads, what it measures, and its own keys.

A format is a set of columns; of two formats that fit a file, the first one is taken.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from distft.config.sections.model import Model
from distft.config.sections.section import Section

Formats = dict[str, tuple[str, ...]]

CHATS: Formats = {"chat": ("messages",), "prompt_completion": ("prompt", "completion"), "text": ("text",)}

PAIRS: Formats = {"preference": ("prompt", "chosen", "rejected")}

LOWER_IS_BETTER = frozenset({"loss", "kl", "cross_entropy", "mse"})
"""Of all metrics; of the others the highest value is the best."""


class CausalLm(Section):
    FORMATS: ClassVar[Formats] = CHATS
    METRICS: ClassVar[tuple[str, ...]] = ("exact_match", "token_accuracy")
    """What evaluation rows hold beside `loss`."""
    TOKEN_LOSS: ClassVar[bool] = True
    """Whether the loss is a token's cross-entropy, so that there is a perplexity."""
    REPLIES: ClassVar[bool] = True
    """Whether the model can be asked for replies to prompts (`evaluation.samples`)."""
    PACKAGES: ClassVar[dict[str, str]] = {}
    """Of the extra `metrics`: modules that it imports, and the packages they are in."""

    name: Literal["causal_lm"]
    exact_match: bool = False
    """Compare held-out answers with what greedy decoding writes: `exact_match`, the share of documents that it writes
    token for token, and `token_accuracy`, the share of tokens that it writes after those before them."""


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


class Preference(Section):
    FORMATS: ClassVar[Formats] = PAIRS
    METRICS: ClassVar[tuple[str, ...]] = ("margin", "accuracy")
    TOKEN_LOSS: ClassVar[bool] = False
    REPLIES: ClassVar[bool] = True
    PACKAGES: ClassVar[dict[str, str]] = {}

    name: Literal["preference"]
    loss: Literal["dpo", "ipo", "orpo", "simpo"] = "dpo"
    """`dpo` and `ipo` compare with the base, the adapter switched off; `orpo` and `simpo` need no reference."""
    beta: PositiveFloat | None = None
    """How much a difference of log-probabilities counts (ORPO: its odds ratio's weight); null: 0.1, SimPO 2."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """DPO: share of the pairs whose answers were taken for each other."""
    gamma: NonNegativeFloat | None = None
    """SimPO: the margin it aims at; null: half of beta."""

    @property
    def has_reference(self) -> bool:
        return self.loss in ("dpo", "ipo")

    @property
    def strength(self) -> float:
        """beta, or what the papers take."""
        return self.beta or (2.0 if self.loss == "simpo" else 0.1)

    @property
    def target_margin(self) -> float:
        return self.strength / 2 if self.gamma is None else self.gamma


class Reward(Section):
    FORMATS: ClassVar[Formats] = PAIRS
    METRICS: ClassVar[tuple[str, ...]] = ("accuracy", "margin")
    TOKEN_LOSS: ClassVar[bool] = False
    REPLIES: ClassVar[bool] = False
    PACKAGES: ClassVar[dict[str, str]] = {}

    name: Literal["reward"]


class Distillation(Section):
    FORMATS: ClassVar[Formats] = CHATS
    METRICS: ClassVar[tuple[str, ...]] = ("kl", "cross_entropy")
    TOKEN_LOSS: ClassVar[bool] = False
    REPLIES: ClassVar[bool] = True
    PACKAGES: ClassVar[dict[str, str]] = {}

    name: Literal["distillation"]
    teacher: Model
    """Another model of the same vocabulary, or the base itself at higher precision: frozen, sharded as the base is,
    computing in its own `dtype` or `compute_dtype`, whatever the student's."""
    kl_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the divergence from the teacher in the loss; the rest is the cross-entropy with the data."""
    direction: Literal["forward", "reverse"] = "forward"
    """KL(teacher, student), which covers all that the teacher does, or KL(student, teacher), which keeps within it."""
    temperature: PositiveFloat = 1.0
    """Both models' logits are divided by it, and the divergence is multiplied by its square (arXiv:1503.02531)."""
    top_k: PositiveInt | None = None
    """Compare the teacher's k likeliest tokens and the rest as one; null: every token of the vocabulary."""
    cache: bool = False
    """Ask the teacher once for each document and keep its `top_k` on disk, beside the tokenised data."""


AnyTask = (
    CausalLm
    | SequenceClassification
    | TokenClassification
    | RelationExtraction
    | ExtractiveQa
    | Seq2Seq
    | Preference
    | Reward
    | Distillation
)
