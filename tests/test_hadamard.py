"""Hadamard matrices: orthogonal, of every order that models have, and the fast transform is the product with them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from drawplate.errors import DrawplateError
from drawplate.hadamard import apply, factors, hadamard, known, orthogonal, pieces, random_hadamard

SMALL = (1, 2, 4, 8, 12, 20, 24, 28, 36, 40, 52, 60, 76, 100, 108, 140, 148, 244, 344, 576, 1152)
WIDTHS = {  # of real models: hidden sizes and the middles of MLPs
    576: (16, 36), 896: (32, 28), 1152: (32, 36), 1536: (128, 12), 2048: (2048, 1), 2304: (64, 36), 3072: (256, 12),
    3584: (128, 28), 4864: (64, 76), 6912: (64, 108), 8192: (8192, 1), 8960: (64, 140), 11008: (32, 344),
    14336: (512, 28), 18944: (128, 148),
}  # fmt: skip
BLOCKS = [n for n in range(1, 200) if known(n)]


def by_the_book(x: Tensor, block: int) -> Tensor:
    """x @ blockdiag(H, H, ..) / sqrt(block)."""
    matrix = torch.block_diag(*[hadamard(block)] * (x.shape[-1] // block)) / math.sqrt(block)
    return x.double() @ matrix


@pytest.mark.parametrize("n", SMALL)
def test_rows_are_orthogonal_signs(n: int) -> None:
    h = hadamard(n)
    assert h.dtype == torch.float64
    assert set(h.unique().tolist()) <= {1.0, -1.0}
    assert torch.equal(h @ h.T, n * torch.eye(n, dtype=torch.float64))


@pytest.mark.parametrize(("n", "expected"), WIDTHS.items())
def test_the_widths_of_real_models_have_matrices(n: int, expected: tuple[int, int]) -> None:
    power, m = factors(n)
    assert (power, m) == expected
    assert power * m == n
    small = hadamard(m)
    assert torch.equal(small @ small.T, m * torch.eye(m, dtype=torch.float64))


@pytest.mark.parametrize("n", WIDTHS)
def test_an_order_is_the_product_of_its_pieces(n: int) -> None:
    """A few rows of the large matrix, so that it need not be multiplied out."""
    assert math.prod(pieces(n)) == n
    rows = [0, 1, n // 3, n - 1]
    expected = torch.ones(4, 1, dtype=torch.float64)
    index = torch.tensor(rows)
    for order in pieces(n):
        n //= order
        row = hadamard(order)[index // n]
        index = index % n
        expected = (expected[:, :, None] * row[:, None, :]).flatten(1)
    unit = torch.zeros(4, expected.shape[1], dtype=torch.float64)
    unit[range(4), rows] = 1
    assert torch.allclose(apply(unit, unit.shape[1]) * math.sqrt(unit.shape[1]), expected, atol=1e-9)


@given(block=st.sampled_from(BLOCKS), repeats=st.integers(1, 3), rows=st.integers(0, 3), seed=st.integers(0, 9))
def test_the_transform_is_the_product_with_the_matrix(block: int, repeats: int, rows: int, seed: int) -> None:
    x = torch.randn(2, rows, repeats * block, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    y = apply(x, block)
    assert torch.allclose(y, by_the_book(x, block), atol=1e-12)
    assert torch.allclose(apply(y, block, transpose=True), x, atol=1e-12)


@pytest.mark.parametrize("n", WIDTHS)
def test_a_wide_transform_keeps_lengths_and_comes_back(n: int) -> None:
    x = torch.randn(3, n, dtype=torch.float64)
    y = apply(x, n)
    assert torch.allclose(y.norm(dim=-1), x.norm(dim=-1))
    assert torch.allclose(apply(y, n, transpose=True), x, atol=1e-11)


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-15), (torch.float32, 3e-7), (torch.bfloat16, 3e-3), (torch.float16, 3e-4)]
)
def test_every_floating_point_type(dtype: torch.dtype, bound: float) -> None:
    x = (100 * torch.randn(4, 1536, dtype=torch.float64)).to(dtype)
    y, expected = apply(x, 512), by_the_book(x, 512)
    assert y.dtype == dtype
    assert float((y.double() - expected).norm() / expected.norm()) < bound


def test_gradients_go_through_the_transpose() -> None:
    x = torch.randn(2, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: apply(t, 12), x)


@pytest.mark.parametrize("make", [orthogonal, random_hadamard])
def test_random_matrices_are_orthogonal_and_repeat(make) -> None:
    q = make(36, seed=3)
    assert torch.allclose(q @ q.T, torch.eye(36, dtype=torch.float64), atol=1e-14)
    assert torch.equal(q, make(36, seed=3))
    assert not torch.equal(q, make(36, seed=4))


@pytest.mark.parametrize("n", [0, -4, 3, 6, 9, 18, 92, 116])
def test_unknown_orders_are_known_to_be_unknown(n: int) -> None:
    assert not known(n)
    with pytest.raises(DrawplateError, match=f"no Hadamard matrix of order {n} "):
        factors(n)


def test_the_error_says_what_is_possible() -> None:
    with pytest.raises(DrawplateError) as error:
        hadamard(92)
    assert str(error.value) == (
        "no Hadamard matrix of order 92 is known here\n"
        "  where: hadamard\n"
        "  why:   orders are 2^k m with m = 1, q + 1 or 2 (q + 1), where q is a prime power that is 3 or 1 modulo 4\n"
        "  do:    rotate in blocks of 4"
    )
    with pytest.raises(DrawplateError, match="leave these channels as they are"):
        hadamard(9)


@pytest.mark.parametrize("block", [0, 5])
def test_a_block_divides_the_channels(block: int) -> None:
    with pytest.raises(DrawplateError) as error:
        apply(torch.zeros(2, 12), block)
    assert str(error.value) == (
        f"blocks of {block} do not divide 12 channels\n"
        "  where: hadamard\n"
        "  why:   every channel is in one block\n"
        "  do:    use a block that divides 12"
    )
