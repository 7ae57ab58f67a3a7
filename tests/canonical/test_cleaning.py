"""What does nothing goes; products with weights are linears; sub-expressions over weights are weights."""

from __future__ import annotations

from itertools import count

import pytest
import torch
from canonical.helpers import canonical, operators

from drawplate.canonical import unrecognised

X = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
W = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "nothing",
    [
        lambda x: x.to(torch.float32).float(),
        lambda x: x.detach().clone().contiguous(),
        lambda x: torch.nn.functional.dropout(x, 0.5, training=False),
        lambda x: x * 1.0 + 0,
        lambda x: x[:, :, :],
        lambda x: x.expand(2, -1, 8).view(2, 3, 8),
    ],
    ids=count(1),
)
def test_what_does_nothing_goes(nothing):
    assert operators(canonical(lambda m, x: torch.relu(nothing(torch.relu(x))), X)) == ["relu", "relu"]


def test_what_does_something_stays():
    assert operators(canonical(lambda m, x: x.double(), X)) == ["to.dtype"]
    assert operators(canonical(lambda m, x: x * True + (x > 0), X)) == ["mul.Tensor", "gt.Scalar", "add.Tensor"]


def test_equal_calls_are_computed_once():
    assert operators(canonical(lambda m, x: x.exp() + x.exp(), X)) == ["exp", "add.Tensor"]


def test_random_calls_are_not_shared():
    from drawplate.canonical import canonicalise
    from drawplate.capture import capture

    class Noisy(torch.nn.Module):
        def forward(self, x):
            return torch.rand_like(x) + torch.rand_like(x)

    program = canonicalise(capture(Noisy(), example_inputs=[X]).program)
    assert operators(program) == ["rand_like", "rand_like", "add.Tensor"]


@pytest.mark.parametrize(
    "product",
    [
        lambda m, x: x @ m.w,
        lambda m, x: torch.mm(x.view(-1, 8), m.w).view(2, 3, 5),
        lambda m, x: torch.addmm(m.b, x.view(-1, 8), m.w).view(2, 3, 5),
    ],
    ids=count(1),
)
def test_products_with_weights_are_linears(product):
    program = canonical(product, X, w=W, b=torch.randn(5))
    assert operators(program) == ["linear"]
    assert torch.equal(program.weights["w_t"], W.t())
    assert program.weights["w_t"].data_ptr() == W.data_ptr()


def test_a_transposed_weight_is_read_as_it_is_stored():
    program = canonical(lambda m, x: torch.relu(x @ m.w.T) + x @ m.w.t(), X, w=W.t().contiguous())
    assert operators(program) == ["linear", "relu", "add.Tensor"]
    assert set(program.weights) == {"w"}


def test_products_with_stacked_weights_are_listed():
    program = canonical(lambda m, x: torch.bmm(x, m.w), X, w=torch.randn(2, 8, 5))
    assert operators(program) == ["bmm"]
    assert [r.why for r in unrecognised(program)] == ["a product with weights that is not a linear"]


def test_weights_are_folded_unless_they_grow():
    program = canonical(lambda m, x: x * (m.a.exp() + 1) + m.a[None].expand(4, 8).sum(0), X, a=torch.ones(8))
    assert operators(program)[:2] == ["mul.Tensor", "add.Tensor"]
    assert set(program.weights) == {"a_add", "a_sum"}
    grown = canonical(lambda m, x: x + m.a[None].repeat(3, 1), X, a=torch.ones(8))
    assert set(grown.weights) == {"a"}


def test_a_weight_and_what_is_folded_from_it_stand_side_by_side():
    program = canonical(lambda m, x: x * (1 + m.a) + m.a, X, a=torch.ones(8))
    assert set(program.weights) == {"a", "a_add"}


def test_writes_become_values():
    def divide(m, x):
        y = x.exp()
        total = y.sum(-1, keepdim=True)
        y /= total
        return y + total

    assert operators(canonical(divide, X)) == ["exp", "sum.dim_IntList", "div.Tensor", "add.Tensor"]


def test_writes_through_views_stay_and_are_listed():
    def overwrite(m, x):
        y = x.clone()
        y[:, 0] = 0
        return y + x.clone()

    program = canonical(overwrite, X)
    assert "clone" in operators(program)
    assert [r.why for r in unrecognised(program)] == ["it writes to a value that others may share"]
