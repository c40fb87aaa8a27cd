"""How the documents of a batch are kept from seeing each other, in each of the ways that a model may be run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from transformers import PreTrainedModel

from distft.model import attention
from distft.model.own_attention import own_implementation


@dataclass(frozen=True)
class Way:
    """One way to run a model over documents."""

    attention: str
    """The `attn_implementation`."""
    padded: bool
    """Each document in a row of its own, in place of side by side."""

    def __str__(self) -> str:
        return f"{self.attention}, {'one document a row, padded' if self.padded else 'documents side by side'}"


def offer(model: PreTrainedModel, asked: str) -> None:
    """Notes on `model`, as built, by which ways it may be run: `asked` is `model.attention`."""
    built = model.config._attn_implementation
    own = own_implementation(model)
    side_by_side, padded = [built, "sdpa", "eager"], [own, "eager"]
    if asked != "auto" or not can_switch(model):
        side_by_side, padded = [built], [built if built != attention.NAME else own]
    ways = [*(Way(each, False) for each in side_by_side), *(Way(each, True) for each in padded)]
    model.distft_ways = list(dict.fromkeys(ways))


def offered(model: PreTrainedModel) -> list[Way]:
    return getattr(model, "distft_ways", [Way(model.config._attn_implementation, False)])


def can_switch(model: PreTrainedModel) -> bool:
    """Whether the model's attention is chosen at each call, and not written into its layers."""
    return bool(type(model)._can_set_attn_implementation())


@contextmanager
def run_by(model: PreTrainedModel, implementation: str) -> Iterator[None]:
    """Runs `model` by another implementation meanwhile, where it has one."""
    usual = model.config._attn_implementation
    switch(model, implementation)
    try:
        yield
    finally:
        switch(model, usual)


def switch(model: PreTrainedModel, implementation: str) -> None:
    if can_switch(model):
        model.set_attn_implementation(implementation)
