"""Moving on the orthogonal matrices: the Cayley update, QR as a parametrisation, and the way back onto the manifold.

All functions take batches of square matrices [.., d, d] and are pure.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = 1e-5
"""The largest element that R R^T - I may have for R to count as orthogonal."""

SMALL = 1e-12  # keeps a step along no gradient at all finite


def departure(r: Tensor) -> float:
    """The largest element of |R R^T - I| in float64, over the whole batch; nan if there is one.

    >>> departure(torch.eye(3)), departure(torch.tensor([[2.0]]))
    (0.0, 3.0)
    """
    wide = r.double()
    eye = torch.eye(r.shape[-1], dtype=torch.float64)
    return float((wide @ wide.mT - eye).abs().max())


def nearest_orthogonal(r: Tensor) -> Tensor:
    """The orthogonal matrix nearest to one that is close to it already, f64: the polar factor, by Newton and Schulz's
    iteration (Higham, Functions of Matrices, 2008, eq. 8.20), which converges quadratically: 1e-3 -> 1e-6 -> 1e-12.

    >>> r = torch.eye(2) + 1e-4
    >>> departure(r) > 1e-4, departure(nearest_orthogonal(r)) < 1e-14
    (True, True)
    """
    wide = r.double()
    for _ in range(4):
        wide = 1.5 * wide - 0.5 * (wide @ (wide.mT @ wide))
    return wide


def cayley_step(r: Tensor, gradient: Tensor, rate: float, cap: float = 1.0, iterations: int = 5) -> Tensor:
    """R one step downhill, along the curve that stays orthogonal: Y(t) = (I + t/2 W)^-1 (I - t/2 W) R with
    W = V - V^T, V = G R^T - 1/2 R (R^T G R^T), found by fixed-point iterations Y <- R - t/2 W (R + Y).

    Li, Fuxin and Todorovic 2020 (arXiv:2002.01113), algorithm 1, without momentum. The step is capped where the
    iteration would not contract, t = min(rate, cap / |W|_1) with cap <= 1, each matrix for itself; what the last
    iteration leaves is removed by a projection.

    r, gradient: f64 [.., d, d].

    >>> quarter = cayley_step(torch.eye(2).double(), torch.tensor([[0.0, 1.0], [0.0, 0.0]]).double(), rate=0.5)
    >>> departure(quarter) < 1e-12, bool(quarter[0, 1] < 0)
    (True, True)
    """
    v = gradient @ r.mT - 0.5 * r @ (r.mT @ gradient @ r.mT)
    w = v - v.mT
    size = w.abs().sum(-2).amax(-1)[..., None, None]
    t = (cap / size.clamp(min=SMALL)).clamp(max=rate)
    y = r - t * (w @ r)
    for _ in range(iterations):
        y = r - t / 2 * (w @ (r + y))
    return nearest_orthogonal(y)


def orthogonal_factor(z: Tensor) -> Tensor:
    """Q of Z = Q R with a positive diagonal of R, which makes it unique: differentiable, and Z itself where Z is
    orthogonal. The parametrisation of DartQuant (arXiv:2511.04063, sec. 4.2): any descent on Z is one on Q.

    >>> (orthogonal_factor(torch.tensor([[2.0, 0.0], [0.0, -3.0]])) + 0.0).tolist()
    [[1.0, 0.0], [0.0, -1.0]]
    """
    q, triangle = torch.linalg.qr(z)
    return q * torch.where(triangle.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)[..., None, :]
