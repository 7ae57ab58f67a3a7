"""Rounding a weight column by column, each column's error made up for by the columns after it.

Frantar et al. 2022, arXiv:2210.17323: minimise ||(W - Q) X||^2 with the second moments H = X X^T of what the weight
reads. Pure functions; streaming.py brings the moments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from drawplate.encoding import STEPS, Encoding, Grid, QTensor, RangeMethod, dequantize, minmax_grid, mse_grid, quantize
from drawplate.errors import DrawplateError

COLUMNS = 128  # errors are carried on within so many columns at once, and then to all that follow


@dataclass(frozen=True)
class Settings:
    """damping: added to the moments' diagonal, as a share of its mean. act_order: columns of large moments first, with
    the scales found beforehand (the groups stay where they are). range: how each block's range is found; steps: of the
    search by mse."""

    damping: float = 0.01
    act_order: bool = False
    range: RangeMethod = "minmax"
    steps: int = STEPS

    def grid(self, weight: Tensor, encoding: Encoding) -> Grid:
        """The grid of a piece of the weight."""
        return mse_grid(weight, encoding, steps=self.steps) if self.range == "mse" else minmax_grid(weight, encoding)


def gptq(weight: Tensor, moments: Tensor, encoding: Encoding, settings: Settings) -> QTensor:
    """weight: [out, in]; moments: [in, in], symmetric, of any scale. Rows have scales of their own.

    With moments that are a multiple of the identity it is plain rounding. Raises DrawplateError if rows share a scale,
    or if the moments are not finite.
    """
    return gptq_each(weight, moments, [encoding], settings)[0]


def gptq_each(weight: Tensor, moments: Tensor, encodings: Sequence[Encoding], settings: Settings) -> list[QTensor]:
    """The same under several encodings: the moments are inverted once."""
    if any(encoding.blocks(weight.shape)[0] != 1 for encoding in encodings):
        raise DrawplateError("gptq needs rows with scales of their own", fix="use a block of 1x32 or 1x-1")
    work, damped = _prepared(weight, moments, settings.damping)
    order = torch.argsort(moments.diagonal(), descending=True, stable=True) if settings.act_order else None
    if order is not None:
        work, damped = work[:, order], damped[order][:, order]
    factor = _factor(damped)
    return [_stored(weight, work.clone(), factor, order, encoding, settings) for encoding in encodings]


def _stored(
    weight: Tensor, work: Tensor, factor: Tensor, order: Tensor | None, encoding: Encoding, settings: Settings
) -> QTensor:
    """work: the weight in the order that it is stored in, and what is left to be stored of it."""
    rows, columns = weight.shape
    _, group = encoding.blocks(weight.shape)
    static = settings.grid(weight.float(), encoding) if order is not None or group == columns else None
    single = replace(encoding, block=(1, 1))
    codes = torch.empty(rows, columns, dtype=quantize(work[:1, :1], _ones(work), single).dtype)
    grids: list[Grid] = [] if static is None else [static]
    step = group if COLUMNS < group < columns else max(1, COLUMNS // group) * group if group < columns else COLUMNS
    for start in range(0, columns, step):
        stop = min(start + step, columns)
        part, errors = work[:, start:stop].clone(), torch.empty(rows, stop - start)
        inner = factor[start:stop, start:stop]
        for i in range(stop - start):
            at = start + i if order is None else int(order[start + i])
            if static is None and at % group == 0:
                grids.append(settings.grid(part[:, i : i + group], encoding))
            grid = _column(static if static is not None else grids[-1], at // group if static is not None else 0)
            column = part[:, i : i + 1]
            code = quantize(column, grid, single)
            codes[:, at] = code[:, 0]
            error = (column - dequantize(code, grid, single)) / inner[i, i]
            part[:, i:].addr_(error[:, 0], inner[i, i:], alpha=-1)
            errors[:, i] = error[:, 0]
        work[:, stop:] -= errors @ factor[start:stop, stop:]
    whole = Grid(torch.cat([g.scale for g in grids], 1), torch.cat([g.zero_point for g in grids], 1))
    return QTensor(codes, whole, encoding, (rows, columns))


def output_error(weight: Tensor, stored: Tensor, moments: Tensor) -> float:
    """||(W - Q) X||^2 / ||W X||^2, from the moments of X."""
    weight, moments = weight.double(), moments.double()
    return output_energy(weight - stored.double(), moments) / max(output_energy(weight, moments), 1e-300)


def output_energy(weight: Tensor, moments: Tensor) -> float:
    """||W X||^2 from the moments of X."""
    return float(((weight @ moments) * weight).sum())


def _prepared(weight: Tensor, moments: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """A copy to work on, without what reads nothing; and the moments with their diagonal made larger."""
    if not bool(torch.isfinite(moments).all()):
        raise DrawplateError("the moments are not finite", why="an activation is inf or nan on the calibration text")
    work = weight.float().clone()
    work[:, moments.diagonal() == 0] = 0
    damped = moments.double().clone()
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += damping * diagonal.mean()
    return work, damped


def _factor(damped: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse, which says how errors are carried on: eq. 3 and step 3 of the paper,
    f32 [in, in]."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()


def _column(grid: Grid, group: int) -> Grid:
    """The scales of one column: [out, 1]."""
    return Grid(grid.scale[:, group : group + 1], grid.zero_point[:, group : group + 1])


def _ones(like: Tensor) -> Grid:
    one = torch.ones(1, 1, dtype=like.dtype)
    return Grid(one, torch.zeros_like(one))
