"""Steps on the orthogonal matrices: they stay there, they go downhill, and QR is the identity where it should be."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drawplate.hadamard import orthogonal
from drawplate.learning.orthogonal import (
    TOLERANCE,
    cayley_step,
    departure,
    nearest_orthogonal,
    orthogonal_factor,
)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 24), st.integers(0, 1000), st.sampled_from([1e-3, 1.0, 1e3]), st.sampled_from([1e-4, 0.1, 10.0]))
def test_many_steps_along_any_gradient_stay_orthogonal(width, seed, scale, rate):
    generator = torch.Generator().manual_seed(seed)
    r = torch.stack([orthogonal(width, seed), orthogonal(width, seed + 1)])
    for _ in range(20):
        gradient = scale * torch.randn(r.shape, dtype=torch.float64, generator=generator)
        r = cayley_step(r, gradient, rate)
        assert departure(r) <= 1e-9 < TOLERANCE


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 16), st.integers(0, 1000))
def test_a_small_step_goes_downhill(width, seed):
    target, r = orthogonal(width, seed), orthogonal(width, seed + 1)
    loss = (r - target).square().sum()
    stepped = cayley_step(r, 2 * (r - target), 1e-3)
    turned = r.T @ target
    if torch.allclose(turned, turned.T, atol=1e-12):  # a reflection in 2 dimensions: every rotation is as far from it
        assert torch.allclose(stepped, r, rtol=0, atol=1e-14)
    else:
        assert float((stepped - target).square().sum()) < float(loss)


def test_descent_finds_a_rotation():
    target = orthogonal(8, 1)
    target[0] *= torch.linalg.det(target)  # a step cannot leave the rotations for the reflections
    r = torch.eye(8, dtype=torch.float64)
    for _ in range(300):
        r = cayley_step(r, -target, 0.3)
    assert float((r - target).abs().max()) < 1e-3


def test_no_gradient_is_no_step():
    r = orthogonal(5, 3)
    assert torch.allclose(cayley_step(r, torch.zeros_like(r), 1.0), r, atol=1e-14)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 32), st.integers(0, 1000))
def test_what_was_rounded_to_float32_is_orthogonal_again(width, seed):
    r = orthogonal(width, seed)
    again = nearest_orthogonal(r.float())
    assert departure(again) < 1e-14 * max(width, 10)
    assert float((again - r).abs().max()) < 1e-6


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 32), st.integers(0, 1000))
def test_the_factor_of_an_orthogonal_matrix_is_that_matrix(width, seed):
    r = torch.stack([orthogonal(width, seed), orthogonal(width, seed + 1)])
    assert torch.allclose(orthogonal_factor(r), r, atol=1e-10)
