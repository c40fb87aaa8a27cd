"""The matrix: every method on every task family, engine and base trains two steps, or is refused with the reason."""

from pathlib import Path

import method_cases as cases
import methods
import pytest
import torch
from families import FAMILIES
from methods import BASES

METHODS = {family: {**methods.shipped(family), **methods.unshipped(family)} for family in FAMILIES}
CELLS = [(f, name, *cell) for f in FAMILIES for name in METHODS[f] for cell in methods.cells(f, name)]


@pytest.fixture(scope="module")
def alone(one_rank, tmp_path_factory):
    """What `single` finds, by family, method and base: computed at the first use."""
    found = {}

    def run(family, method, base):
        if (family, method, base) not in found:
            config = cases.config(METHODS[family][method], "single", BASES[base], family)
            found[family, method, base] = one_rank.run(cases.run, config, tmp_path_factory.mktemp(method))[0]
        return found[family, method, base]

    return run


def assert_trains(result):
    assert result["trains"]
    # GLoRA's D scales the base's biases, which are zero where weights are random.
    assert [name for name in result["without gradient"] if "glora_D" not in name] == []
    assert [name for name in result["still"] if "glora_D" not in name] == []
    assert result["base moved"] == []
    assert result["differs after resume"] == []
    assert result["dtypes"] == ["torch.float32"]


def assert_agrees(ours, alone):
    assert ours["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    assert ours["gradients"].keys() == alone["gradients"].keys()
    largest = max(gradient.abs().max().item() for gradient in alone["gradients"].values())
    for name, gradient in alone["gradients"].items():
        # A bias of BERT's keys shifts all inputs of a softmax alike: its gradient is zero, and what is seen rounding.
        tolerance = 1e-5 * gradient.abs().max().item() + 1e-7 * largest
        torch.testing.assert_close(ours["gradients"][name], gradient, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("family", "method", "engine", "base"), CELLS)
def test_what_trains_gets_a_gradient_and_moves_and_nothing_else_does_and_resume_is_exact(
    alone, two_ranks, tmp_path: Path, family: str, method: str, engine: str, base: str
):
    config = cases.config(METHODS[family][method], engine, BASES[base], family)
    refused = methods.refusals(config)
    if refused:
        assert all(": " in sentence and "; " in sentence for sentence in refused), "a reason and a fix"
        return
    reference = alone(family, method, base)
    if engine == "single":
        assert_trains(reference)
    else:
        first, second = two_ranks.run(cases.run, config, tmp_path, methods.resumes(family, engine, base))
        assert_trains(first)
        assert_trains(second)
        assert_agrees(first, reference)


def test_the_committed_tables_are_those_of_the_methods():
    from tests.methods import table

    assert table.PLACE.read_text(encoding="utf-8") == table.text(), "made by tests/methods/table.py"
    readme = table.README.read_text(encoding="utf-8")
    assert readme == table.in_readme(readme), "made by tests/methods/table.py"
