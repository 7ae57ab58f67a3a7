"""Hadamard matrices: which orders can be built, the matrices, and the fast transform of a tensor's channels.

Orders 2^k are Sylvester's (Phil. Mag. 34, 1867), orders q + 1 and 2 (q + 1) over a finite field of q elements are
Paley's (J. Math. Phys. 12, 1933), and their Kronecker products are all others. A product of small factors is what makes
the transform fast: each factor is applied by itself (Fino and Algazi, IEEE Trans. Computers C-25, 1976).
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from sympy import ZZ, divisors, factorint
from sympy.polys.galoistools import gf_irreducible_p
from torch import Tensor

from drawplate.errors import DrawplateError

Signs = NDArray[np.int8]

INNER, OUTER = 32, 64
"""Widths of the pieces that a transform is cut into. Narrower ones need fewer multiply-adds and more passes over the
data; of about ten ways each these were nearly the fastest, for 1536, 3584 and 8192 channels in XNNPACK and torch."""


def factors(n: int) -> tuple[int, int]:
    """n = power * m: the largest power of two that leaves an order m which is 1 or one of Paley's.

    Raises DrawplateError if there is none.

    >>> factors(2048), factors(1536), factors(576), factors(11008)
    ((2048, 1), (128, 12), (16, 36), (32, 344))
    """
    found = _factors(n)
    if found is None:
        possible = [d for d in divisors(n) if _factors(d)] if n > 0 else []
        raise DrawplateError(
            f"no Hadamard matrix of order {n} is known here",
            where="hadamard",
            why="orders are 2^k m with m = 1, q + 1 or 2 (q + 1), where q is a prime power that is 3 or 1 modulo 4",
            fix=f"rotate in blocks of {possible[-1]}" if len(possible) > 1 else "leave these channels as they are",
        )
    return found


def known(n: int) -> bool:
    """Can a Hadamard matrix of this order be built?

    >>> [n for n in range(1, 40) if known(n)]
    [1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 36]
    """
    return _factors(n) is not None


def hadamard(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """[n, n] of +1 and -1 with H H^T = n I: Paley's matrix of order m times (Kronecker) Sylvester's. Sylvester's are
    symmetric, and those of order 2 (q + 1); the others are not.

    >>> hadamard(4, torch.int8).tolist()
    [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    """
    power, m = factors(n)
    return torch.tensor(np.kron(_paley(m), _sylvester(power)), dtype=dtype)


def pieces(n: int) -> tuple[int, ...]:
    """Orders whose matrices multiply (Kronecker, in this order) to that of n: what is fast to apply one by one.
    Raises DrawplateError if there is no matrix.

    >>> pieces(64), pieces(1536), pieces(3584), pieces(8192), pieces(11008)
    ((64,), (48, 32), (28, 4, 32), (16, 16, 32), (344, 32))
    """
    power, m = factors(n)
    if n <= OUTER:
        return (n,)
    inner = power if power <= OUTER else INNER
    if n // inner <= OUTER:
        return n // inner, inner
    exponent = (power // inner).bit_length() - 1
    count = math.ceil(exponent / (INNER.bit_length() - 1))
    powers = [1 << (exponent // count + (i < exponent % count)) for i in range(count)]
    return tuple(order for order in (m, *powers, inner) if order > 1)


def apply(x: Tensor, block: int, *, transpose: bool = False) -> Tensor:
    """Every run of `block` channels of x [.., n] times H / sqrt(block), as a row: y = x H (transpose: y = x H^T).

    Halves are computed in float32 and rounded once. Raises DrawplateError where there is no such matrix, or the block
    does not divide the channels.

    >>> apply(torch.tensor([1.0, 0, 0, 0, 3, 1, 0, 0]), 4)
    tensor([0.5000, 0.5000, 0.5000, 0.5000, 2.0000, 1.0000, 2.0000, 1.0000])
    """
    n = x.shape[-1]
    if block < 1 or n % block:
        raise DrawplateError(
            f"blocks of {block} do not divide {n} channels",
            where="hadamard",
            why="every channel is in one block",
            fix=f"use a block that divides {n}",
        )
    y = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    for order in reversed(pieces(block)):
        matrix = torch.tensor(_signs(order), dtype=y.dtype, device=y.device) * order**-0.5
        y = y.reshape(-1, order) @ (matrix.mT if transpose else matrix)
        y = y.reshape(-1, block // order, order).mT  # the next piece's axis is last now
    return y.reshape(x.shape).to(x.dtype)


def orthogonal(n: int, seed: int) -> Tensor:
    """A random orthogonal matrix, uniform among all: f64 [n, n]. QR of normal numbers, with the signs that make it
    unique (Mezzadri, Notices of the AMS 54, 2007).

    >>> q = orthogonal(5, seed=1)
    >>> torch.allclose(q @ q.T, torch.eye(5, dtype=torch.float64))
    True
    """
    normal = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    q, r = torch.linalg.qr(normal)
    return q * torch.where(r.diagonal() < 0, -1.0, 1.0)


def random_hadamard(n: int, seed: int) -> Tensor:
    """diag(s) H / sqrt(n) with random signs s: f64 [n, n], orthogonal. Raises DrawplateError where there is no H.

    >>> random_hadamard(2, seed=0).abs()
    tensor([[0.7071, 0.7071],
            [0.7071, 0.7071]], dtype=torch.float64)
    """
    bits = torch.randint(0, 2, (n, 1), generator=torch.Generator().manual_seed(seed))
    return (2.0 * bits.double() - 1) * hadamard(n) / math.sqrt(n)


@lru_cache(maxsize=1024)
def _factors(n: int) -> tuple[int, int] | None:
    if n < 1:
        return None
    power = n & -n
    odd = n // power
    if odd == 1:
        return power, 1
    candidates = (odd << e for e in range(2, power.bit_length()))
    return next(((n // m, m) for m in candidates if _field(m)), None)


@lru_cache(maxsize=1024)
def _field(m: int) -> tuple[int, int, bool] | None:
    """(p, k, doubled) of the field of q = p^k elements that gives a matrix of order q + 1, or doubled 2 (q + 1)."""
    for q, rest, doubled in ((m - 1, 3, False), (m // 2 - 1, 1, True)):
        if q > 1 and q % 4 == rest and len(primes := factorint(q)) == 1:
            ((p, k),) = primes.items()
            return int(p), int(k), doubled
    return None


@lru_cache(maxsize=64)
def _signs(order: int) -> Signs:
    """One of the pieces, as numbers that no mode of torch has touched: this is also asked while shapes are inferred."""
    power, m = factors(order)
    return np.kron(_paley(m), _sylvester(power)).astype(np.int8)


def _sylvester(power: int) -> Signs:
    """H[i, j] = (-1)^(number of bits that i and j share)."""
    i = np.arange(power)
    return (1 - 2 * (np.bitwise_count(i[:, None] & i) % 2)).astype(np.int8)


@lru_cache(maxsize=64)
def _paley(m: int) -> Signs:
    """Paley's matrix of order m (1: the number 1), from the squares of a finite field.

    With C = [[0, 1], [+-1, Q]], where Q[i, j] tells whether a_i - a_j is a square: I + C for q = 3 modulo 4, and
    C (x) [[1, 1], [1, -1]] + I (x) [[1, -1], [-1, -1]] for q = 1 modulo 4.
    """
    field = _field(m)
    if field is None:
        assert m == 1
        return np.ones((1, 1), dtype=np.int8)
    p, k, doubled = field
    q = p**k
    core = np.ones((q + 1, q + 1), dtype=np.int8)
    core[0, 0] = 0
    core[1:, 0] = 1 if doubled else -1
    core[1:, 1:] = _character(p, k)[_differences(p, k)]
    one = np.eye(q + 1, dtype=np.int8)
    if not doubled:
        return core + one
    return (np.kron(core, [[1, 1], [1, -1]]) + np.kron(one, [[1, -1], [-1, -1]])).astype(np.int8)


def _digits(p: int, k: int) -> NDArray[np.int64]:
    """The elements of the field of p^k: coefficients of polynomials, lowest first, [p^k, k]."""
    return np.arange(p**k)[:, None] // p ** np.arange(k) % p


def _differences(p: int, k: int) -> NDArray[np.int64]:
    """The number of a_i - a_j, [p^k, p^k]."""
    digits = _digits(p, k)
    total = np.zeros((p**k, p**k), dtype=np.int64)
    for place in range(k):
        total += (digits[:, None, place] - digits[:, place]) % p * p**place
    return total


def _character(p: int, k: int) -> Signs:
    """For each element of the field: 1 if it is a square, -1 if not, 0 for 0."""
    digits = _digits(p, k)
    squares = np.zeros((p**k, 2 * k - 1), dtype=np.int64)
    for i, j in product(range(k), repeat=2):
        squares[:, i + j] += digits[:, i] * digits[:, j]
    modulus = np.array(_irreducible(p, k))
    for degree in range(2 * k - 2, k - 1, -1):
        squares[:, degree - k : degree] -= squares[:, degree, None] % p * modulus
    found = np.full(p**k, -1, dtype=np.int8)
    found[squares[:, :k] % p @ p ** np.arange(k)] = 1
    found[0] = 0
    return found


def _irreducible(p: int, k: int) -> tuple[int, ...]:
    """The first monic polynomial of degree k that has no factor modulo p: its coefficients below x^k, lowest first."""
    tails = product(range(p), repeat=k)
    return next(tail[::-1] for tail in tails if gf_irreducible_p([ZZ(1), *map(ZZ, tail)], p, ZZ))
