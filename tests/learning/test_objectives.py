"""What rows look like to each loss: large elements cost, and kurtosis does not see lengths."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drawplate.hadamard import random_hadamard
from drawplate.learning.objectives import OBJECTIVES, UNIFORM_KURTOSIS, kurtosis, whip
from drawplate.learning.rows import unit


def rows(seed: int, spike: float) -> torch.Tensor:
    """[2, 16, 64], one channel `spike` times the others."""
    x = torch.randn(2, 16, 64, generator=torch.Generator().manual_seed(seed))
    x[..., 7] *= spike
    return unit(x)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(sorted(OBJECTIVES)))
def test_an_outlier_costs_and_a_hadamard_matrix_takes_it_away(seed, name):
    loss = OBJECTIVES[name]
    with_outlier = rows(seed, 100.0)
    spread = with_outlier @ random_hadamard(64, seed).float()
    assert float(loss(spread)) < float(loss(with_outlier))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_kurtosis_does_not_see_lengths(seed, length):
    x = rows(seed, 3.0)
    assert torch.allclose(kurtosis(x), kurtosis(x * length), rtol=1e-3)


def test_bounds():
    x = rows(0, 1.0)
    assert 0 < float(whip(x)) < 1
    assert float(kurtosis(torch.tensor([[1.0, -1.0]]))) == pytest.approx(UNIFORM_KURTOSIS - 1)


def test_a_row_of_zeros_stays_one():
    assert torch.equal(unit(torch.zeros(1, 4)), torch.zeros(1, 4))
