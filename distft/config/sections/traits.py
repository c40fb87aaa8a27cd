"""What other parts may ask of an adapter, an engine or a task without knowing its name. Imports no torch.

Each section says what of it differs from the defaults. A text in place of yes is the reason that people are told.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

Formats = Mapping[str, tuple[str, ...]]
"""The columns of each format; of two formats that fit a file, the first one is taken."""


@dataclass(frozen=True)
class AdapterTraits:
    """Facts of an adapter; the defaults are those of a method of PEFT."""

    is_peft: bool = True
    """PEFT attaches and saves it, and can switch it off."""
    own_weights: bool = False
    """A part of the model's own weights trains."""
    every_weight: bool = False
    """All of them do."""
    starts_as_base: bool = False
    """Untrained, the model computes what its base does. Switched off, it may lack a part of the base (PiSSA)."""
    changes_base: str = ""
    """The `adapter.init` that takes a part of the base's weights away: before they are quantised, in float32."""
    fits_quantisation: bool = False
    """It starts from the error of a quantisation."""
    targets: str = "all-linear"
    """An example of its `targets`; empty: it takes none."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """Options that must be set, with an example of each."""
    virtual_tokens: bool = False
    """They stand before each row."""
    is_cache: bool = False
    """Its virtual tokens are keys and values: there are more keys than queries."""
    rank_budget: tuple[int, int] | None = None
    """Its ranks fall over the run, but for this many steps at its start and its end."""
    decoders_only: bool = False
    """It does not know the attention of an encoder-decoder."""
    wraps_sublayers: bool = False
    """It stands around sublayers of the blocks, linear layers or not."""
    keeps_heads: bool = True
    """A task's new head is saved with it."""
    combines: bool = False
    """Several on one base can be combined into one."""
    magnitudes: bool = False
    """Weights' magnitudes train beside it (DoRA)."""
    unmergeable: str = ""
    """Why no plain model can hold it."""
    unshardable: str = ""
    """Why it cannot train where blocks are sharded."""
    needs_hooks: str = ""
    """Why it cannot train where gradients pass by PyTorch's hooks."""
    b_lr_ratio: float = 1.0
    """How many times the learning rate of all others LoRA's B has."""
    dropout: float | None = None
    """None: it is not known from the config."""
    unfreeze_every: int | None = None
    """Steps after which one more block trains; None: all do from the first step on."""
    last_blocks: int | None = None
    """How many blocks train, from the top; None: all."""


@dataclass(frozen=True)
class EngineTraits:
    """Facts of an engine; the defaults are those of one process."""

    one_rank: bool = False
    """It runs on one rank only."""
    shards_blocks: bool = False
    """Each rank keeps its share of a block's weights."""
    splits_weights: bool = False
    """The optimizer sees a part of a weight, not the whole."""
    flattens: bool = False
    """The optimizer sees all weights as one vector."""
    skips_hooks: bool = False
    """Gradients pass by PyTorch's hooks on parameters."""
    package: str = ""
    """The package that it is made of."""


@dataclass(frozen=True)
class TaskTraits:
    """Facts of a task; the defaults are those of one with labels and a loss of its own."""

    formats: Formats
    metrics: tuple[str, ...]
    """What evaluation rows hold beside `loss`."""
    lower_is_better: tuple[str, ...] = ()
    """Of the metrics; of the others the highest value is the best."""
    measured_if: str = ""
    """The task's own key without which its metrics are not measured; empty: they always are."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Modules that the metrics import, and the packages they are in."""
    token_loss: bool = False
    """The loss is a token's cross-entropy, so that there is a perplexity."""
    replies: bool = False
    """The model can be asked for replies to prompts (`evaluation.samples`)."""
    averages: bool = False
    """What several models say of a row has a mean: probabilities of labels, or values, as `kind` in its facts says."""
    has_head: bool = True
    """The model gets a head that no base has."""
    smoothed: bool = False
    """The loss is a cross-entropy over a fixed set of classes."""
    r_drop: bool = False
    """R-Drop is part of the loss."""
    one_text: bool = True
    """A row is one text."""
    pads: bool = False
    """The model pads its batches."""
    encoder_decoder: bool = False
    virtual_tokens: bool = False
    """The model passes over virtual tokens before a row."""
    linear_sublayers: bool = True
    """Sublayers of the model's blocks may be linear layers."""
    reference: str = ""
    """The setting by which the loss compares with the base, the adapter switched off."""

    def is_better(self, metric: str, value: float, best: float) -> bool:
        """Whether `value` beats `best`; of losses the lower one does."""
        return value < best if metric in ("loss", *self.lower_is_better) else value > best
