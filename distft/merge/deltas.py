"""Changes of a layer put together. Every method acts on the changes W' - W themselves, never on one of their factors:
factors of two runs have no common basis, and a mean of them is no mean of anything."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NEGLIGIBLE = 1e-6
"""Share of the largest singular value below which one is the rounding of float32 factors."""


@dataclass(frozen=True)
class Delta:
    """A change `b @ a` of low rank, one for each expert; a plain layer is one expert."""

    b: Tensor
    """[experts, out, r]"""
    a: Tensor
    """[experts, r, in]"""

    @classmethod
    def of_factors(cls, a: Tensor, b: Tensor, experts: int, scale: float) -> "Delta":
        """Of PEFT's factors: A [experts r, in] has each expert's ranks together, B [out, r experts] not."""
        a, b = a.double().unflatten(0, (experts, -1)), b.double().unflatten(1, (-1, experts)).permute(2, 0, 1)
        return cls(scale * b, a)

    def factors(self) -> tuple[Tensor, Tensor]:
        """PEFT's A and B, for a scale of 1."""
        return self.a.flatten(0, 1).float(), self.b.permute(1, 2, 0).flatten(1).float()

    @property
    def rank(self) -> int:
        return self.a.shape[1]

    def dense(self) -> Tensor:
        return (self.b @ self.a).float()

    def of_rank(self, r: int) -> "Delta":
        """The same with `r` rows of `a`: the first, or zeros added."""
        more = max(0, r - self.rank)
        return Delta(
            torch.nn.functional.pad(self.b, (0, more))[:, :, :r],
            torch.nn.functional.pad(self.a, (0, 0, 0, more))[:, :r],
        )


def side_by_side(deltas: Sequence[Delta], weights: Sequence[float]) -> Delta:
    """The weighted sum, exactly: all ranks beside each other."""
    b = [weight * delta.b.double() for weight, delta in zip(weights, deltas, strict=True)]
    return Delta(torch.cat(b, 2), torch.cat([delta.a.double() for delta in deltas], 1))


def least_rank(delta: Delta) -> Delta:
    """The same change in the fewest ranks that hold it, the largest singular values first."""
    q_b, r_b = torch.linalg.qr(delta.b.double())
    q_a, r_a = torch.linalg.qr(delta.a.double().mT)
    u, s, v = torch.linalg.svd(r_b @ r_a.mT, full_matrices=False)
    return _cut(q_b @ u, s, v @ q_a.mT)


def factored(change: Tensor, r: int) -> Delta:
    """The best approximation of `change` [experts, out, in] of rank `r` at most."""
    u, s, v = torch.linalg.svd(change, full_matrices=False)
    return _cut(u, s, v).of_rank(r)


def _cut(u: Tensor, s: Tensor, v: Tensor) -> Delta:
    rank = max(1, int((s > NEGLIGIBLE * s.amax(-1, keepdim=True)).sum(-1).max()))
    root = s[:, :rank].sqrt()
    return Delta(u[:, :, :rank] * root[:, None], root[:, :, None] * v[:, :rank])


def combined(
    changes: Sequence[Tensor], weights: Sequence[float], method: str, density: float, draw: torch.Generator
) -> Tensor:
    """The changes by TIES (arXiv:2306.01708), DARE (arXiv:2311.03099), or their largest values summed.

    Equal changes with weights of sum 1 stay what pruning leaves of them; with `density` 1, what they are.
    """
    if method.startswith("dare"):
        kept = [_dropped(change, density, draw) for change in changes]
    else:
        kept = [_largest(change, density) for change in changes]
    weighted = torch.stack([weight * change for weight, change in zip(weights, kept, strict=True)])
    total = weighted.sum(0)
    if not method.endswith("ties"):
        return total
    agree = weighted.sign() == total.sign()
    share = torch.tensor(weights).abs().view(-1, *[1] * total.dim())
    # The weighted mean of those that agree, times the sum of the weights: fewer voices are not a softer one.
    voices = (share * agree * (weighted != 0)).sum(0)
    return (weighted * agree).sum(0) * share.sum() / voices.where(voices > 0, torch.ones_like(voices))


def _dropped(change: Tensor, density: float, draw: torch.Generator) -> Tensor:
    return change * torch.bernoulli(torch.full_like(change, density), generator=draw) / density


def _largest(change: Tensor, density: float) -> Tensor:
    sizes = change.abs().flatten()
    number = max(1, int(density * sizes.numel()))
    return change.where(change.abs() >= sizes.kthvalue(sizes.numel() - number + 1).values, 0)
