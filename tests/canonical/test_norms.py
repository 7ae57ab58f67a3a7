"""Norms that are written out are one operation, however they are written; what only resembles one is left alone."""

from __future__ import annotations

from itertools import count

import pytest
import torch
from canonical.helpers import canonical, operators

from drawplate.canonical import unrecognised

X = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
W, B = torch.linspace(0.5, 2, 8), torch.linspace(-1, 1, 8)


def square(x):
    return x.pow(2).mean(-1, keepdim=True)


@pytest.mark.parametrize(
    "norm",
    [
        lambda m, x: m.w * (x * torch.rsqrt(square(x) + 1e-5)),
        lambda m, x: x * torch.rsqrt((x * x).mean(2, keepdim=True) + 1e-5) * m.w,
        lambda m, x: torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-5) * x * m.w,
        lambda m, x: x / torch.sqrt(square(x) + 1e-5) * m.w,
        lambda m, x: x * (square(x) + 1e-5).pow(-0.5) * m.w,
        lambda m, x: x * (1 / torch.sqrt(square(x) + 1e-5)) * m.w,
        lambda m, x: torch.nn.functional.rms_norm(x, [8], m.w, 1e-5),
    ],
    ids=count(1),
)
def test_rms_norm(norm):
    program = canonical(norm, X, w=W)
    assert operators(program) == ["rms_norm"]
    (node,) = program.nodes()
    assert (node.args[1], node.args[2].target, node.args[3]) == ([8], "w", 1e-5)


def test_without_a_weight():
    assert operators(canonical(lambda m, x: x * torch.rsqrt(square(x) + 1e-5) + 1, X)) == ["rms_norm", "add.Tensor"]


def test_a_weight_with_one_added_is_a_weight_of_its_own():
    program = canonical(lambda m, x: x * torch.rsqrt(square(x) + 1e-5) * (1.0 + m.w), X, w=W)
    assert operators(program) == ["rms_norm"]
    assert torch.equal(program.weights["w_add"], 1 + W)
    assert set(program.weights) == {"w_add"}


@pytest.mark.parametrize(
    "norm",
    [
        lambda m, x: (
            (x - x.mean(-1, keepdim=True)) * torch.rsqrt(square(x - x.mean(-1, keepdim=True)) + 1e-5) * m.w + m.b
        ),
        lambda m, x: torch.nn.functional.layer_norm(x, [8], m.w, m.b),
    ],
    ids=count(1),
)
def test_layer_norm(norm):
    program = canonical(norm, X, w=W, b=B)
    assert operators(program) == ["layer_norm"]
    assert next(program.nodes()).args[4] == 1e-5


def test_a_weight_of_another_shape_stays_outside():
    program = canonical(lambda m, x: x * torch.rsqrt(square(x) + 1e-5) * m.w, X, w=torch.ones(3, 1))
    assert operators(program) == ["rms_norm", "mul.Tensor"]


def test_the_normalised_value_is_read_twice():
    def both(m, x):
        y = x * torch.rsqrt(square(x) + 1e-5)
        return y * m.w + y

    assert operators(canonical(both, X, w=W)) == ["rms_norm", "mul.Tensor", "add.Tensor"]


@pytest.mark.parametrize(
    "almost",
    [
        lambda m, x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-5),  # another axis
        lambda m, x: x.abs() * torch.rsqrt(square(x) + 1e-5),  # of another value
        lambda m, x: x * torch.rsqrt(x.pow(4).mean(-1, keepdim=True) + 1e-5),  # another power
    ],
    ids=count(1),
)
def test_what_is_almost_a_norm_stays_and_is_listed(almost):
    program = canonical(almost, X)
    assert "rms_norm" not in operators(program)
    (refusal,) = unrecognised(program)
    assert "a norm that is neither rms_norm nor layer_norm over the last axis" in str(refusal)
    assert "`return self.function(self, x)`" in refusal.source
