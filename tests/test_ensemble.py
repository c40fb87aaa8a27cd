"""The mean of what several adapters say is the mean of their probabilities."""

import numpy as np
import pytest
import torch

from distft.evaluate.ensemble import average

LOGITS = [np.array(row, np.float32) for row in ([2.0, -1.0, 0.5], [-3.0, 80.0, 0.0], [0.1, -90.0, 4.0])]


def test_classes_are_the_mean_of_softmaxes():
    mean = torch.stack([torch.tensor(row).double().softmax(0) for row in LOGITS]).mean(0)
    np.testing.assert_allclose(np.exp(average(LOGITS, "single_label")), mean, rtol=1e-9)


def test_several_classes_are_the_mean_of_sigmoids():
    mean = torch.stack([torch.tensor(row).double().sigmoid() for row in LOGITS]).mean(0)
    found = 1 / (1 + np.exp(-average(LOGITS, "multi_label")))
    np.testing.assert_allclose(found, mean, rtol=1e-9)


def test_values_are_the_mean_of_values():
    np.testing.assert_allclose(average(LOGITS, "regression"), np.mean(LOGITS, axis=0), rtol=1e-6)


@pytest.mark.parametrize("kind", ["single_label", "multi_label", "regression"])
def test_one_member_alone_decides_as_it_does(kind):
    for row in LOGITS:
        assert average([row], kind).argmax() == row.argmax()
