"""The matrix: every method on every task family, engine and base trains two steps, or is refused with the reason."""

from pathlib import Path

import method_cases as cases
import methods
import pytest
import torch
from methods import BASES, FAMILIES

METHODS = {**methods.shipped(), **methods.unshipped()}


@pytest.fixture(scope="module")
def alone(one_rank, tmp_path_factory):
    """What `single` finds, by method and base: computed at the first use."""
    found = {}

    def run(method, base):
        if (method, base) not in found:
            config = cases.config(METHODS[method], "single", BASES[base])
            found[method, base] = one_rank.run(cases.run, config, tmp_path_factory.mktemp(method))[0]
        return found[method, base]

    return run


def assert_trains(result):
    assert result["trains"]
    assert result["without gradient"] == []
    assert result["still"] == []
    assert result["base moved"] == []
    assert result["differs after resume"] == []
    assert result["dtypes"] == ["torch.float32"]


def assert_agrees(ours, alone):
    assert ours["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    assert ours["gradients"].keys() == alone["gradients"].keys()
    for name, gradient in alone["gradients"].items():
        tolerance = 1e-5 * gradient.abs().max().item() + 1e-12
        torch.testing.assert_close(ours["gradients"][name], gradient, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("method", "engine", "base"), [(m, *cell) for m in METHODS for cell in methods.cells(m)])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_trains_gets_a_gradient_and_moves_and_nothing_else_does_and_resume_is_exact(
    alone, two_ranks, tmp_path: Path, family: str, method: str, engine: str, base: str
):
    config = cases.config(METHODS[method], engine, BASES[base])
    refused = methods.refusals(config)
    if refused:
        assert all(": " in sentence and "; " in sentence for sentence in refused), "a reason and a fix"
        return
    reference = alone(method, base)
    if engine == "single":
        assert_trains(reference)
    else:
        first, second = two_ranks.run(cases.run, config, tmp_path, base == "nf4")
        assert_trains(first)
        assert_trains(second)
        assert_agrees(first, reference)


def test_the_committed_table_is_that_of_the_methods():
    from tests.methods import table

    assert table.PLACE.read_text() == table.text(), "run python -m tests.methods.table"
