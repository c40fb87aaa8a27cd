"""The sections of the `task` group: what each task reads, what it measures, and its own keys."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from distft.config.keys import show
from distft.config.sections.model import Model
from distft.config.sections.section import Section
from distft.config.sections.traits import Formats, TaskTraits

CHATS: Formats = {"chat": ("messages",), "prompt_completion": ("prompt", "completion"), "text": ("text",)}

PAIRS: Formats = {"preference": ("prompt", "chosen", "rejected")}


class CausalLm(Section):
    traits: ClassVar[TaskTraits] = TaskTraits(
        formats=CHATS,
        metrics=("exact_match", "token_accuracy"),
        measured_if="exact_match",
        token_loss=True,
        replies=True,
        smoothed=True,
        r_drop=True,
        virtual_tokens=True,
        linear_sublayers=False,
        has_head=False,
    )

    name: Literal["causal_lm"]
    exact_match: bool = False
    """Compare held-out answers with what greedy decoding writes: `exact_match`, the share of documents that it writes
    token for token, and `token_accuracy`, the share of tokens that it writes after those before them."""


class SequenceClassification(Section):
    traits: ClassVar[TaskTraits] = TaskTraits(
        formats={"labelled_pair": ("text_a", "text_b", "label"), "labelled": ("text", "label")},
        metrics=("accuracy", "macro_f1", "micro_f1", "mse", "pearson", "spearman"),
        packages={"sklearn": "scikit-learn"},
        lower_is_better=("mse",),
        averages=True,
        smoothed=True,
    )

    name: Literal["sequence_classification"]
    kind: Literal["auto", "single_label", "multi_label", "regression"] = "auto"
    """What a label is; `auto`: text is one class of several, a list is several classes at once, a number a value."""
    class_weights: Literal["none", "balanced"] | dict[str, PositiveFloat] = "none"
    """How much a row of a class counts in the loss; `balanced`: each class as much as any other."""


class TokenClassification(Section):
    traits: ClassVar[TaskTraits] = TaskTraits(
        formats={"tagged": ("tokens", "tags")},
        metrics=("precision", "recall", "f1", "accuracy", "macro_f1", "micro_f1"),
        packages={"sklearn": "scikit-learn", "seqeval": "seqeval"},
        smoothed=True,
    )

    name: Literal["token_classification"]
    scheme: Literal["auto", "bio", "bioes", "plain"] = "auto"
    """How tags make entities; `plain`: they make none. `auto`: as the tags look."""
    stride: NonNegativeInt = 32
    """Tokens that a window of a long sentence repeats of the one before it, as context."""


class RelationExtraction(Section):
    traits: ClassVar[TaskTraits] = TaskTraits(
        formats={"relation": ("text", "subject", "object", "label")},
        metrics=("accuracy", "macro_f1", "micro_f1"),
        packages={"sklearn": "scikit-learn"},
        smoothed=True,
    )

    name: Literal["relation_extraction"]


class ExtractiveQa(Section):
    traits: ClassVar[TaskTraits] = TaskTraits(
        formats={"extractive_qa": ("question", "context", "answers")}, metrics=("exact_match", "f1")
    )

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
    traits: ClassVar[TaskTraits] = TaskTraits(
        formats={"source_target": ("source", "target")},
        metrics=("bleu", "chrf", "rouge_l"),
        packages={"sacrebleu": "sacrebleu", "rouge_score": "rouge-score"},
        token_loss=True,
        smoothed=True,
        one_text=False,
        pads=True,
        encoder_decoder=True,
        has_head=False,
    )

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
    def traits(self) -> TaskTraits:
        reference = f"task.loss={self.loss}" if self.has_reference else ""
        return TaskTraits(
            formats=PAIRS,
            metrics=("margin", "accuracy"),
            replies=True,
            has_head=False,
            one_text=False,
            reference=reference,
        )

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

    def problems(self) -> Iterator[str]:
        for key, owner, off in (("label_smoothing", "dpo", "0"), ("gamma", "simpo", "null")):
            value = getattr(self, key)
            if value and self.loss != owner:
                yield (
                    f"task.{key}: must be {off} but for task.loss={owner}, got {show(value)} with {self.loss}; "
                    f"set task.{key}={off}"
                )


class Reward(Section):
    traits: ClassVar[TaskTraits] = TaskTraits(formats=PAIRS, metrics=("accuracy", "margin"), one_text=False)

    name: Literal["reward"]


class Distillation(Section):
    traits: ClassVar[TaskTraits] = TaskTraits(
        formats=CHATS,
        metrics=("kl", "cross_entropy"),
        lower_is_better=("kl", "cross_entropy"),
        replies=True,
        has_head=False,
    )

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

    def problems(self) -> Iterator[str]:
        yield from self.teacher.problems("task.teacher")
        if self.cache and self.top_k is None:
            yield "task.top_k: must be set where task.cache keeps what the teacher says, got null; set task.top_k=64"
        if self.cache and self.teacher.random_init is not None:
            yield (
                "task.cache: must be false where the teacher is drawn from the seed, got true with "
                "task.teacher.random_init; set task.cache=false"
            )

    def missing(self) -> Iterator[str]:
        yield from self.teacher.missing("task.teacher")


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
