"""Weights, scales and zero points that are trained together, block by block, to give what the block gave: Block-AP.

Chen et al. 2024, arXiv:2407.11062 (EfficientQAT), sec. 3.2. A weight is stored as Q(w) on the grid (s, z); w, s and z
are all trained, straight through the roundings. blockwise.py brings the problems.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from drawplate.blockwise import Problem
from drawplate.encoding import (
    Encoding,
    Grid,
    Layout,
    QTensor,
    RangeMethod,
    encode,
    fake_quantize,
    minmax_grid,
    mse_grid,
    nearest_grid,
)
from drawplate.learning.descent import Precision, Told, computing, drawn, falling, halves, refuse_divergence


@dataclass(frozen=True)
class Settings:
    """epochs: over the windows that are trained on. rate, grid_rate: AdamW's first; of weights, in steps of the grid;
    of scales, in shares of them, and of zero points, in codes. Both fall along a cosine to a twentieth. batch: windows
    of each step. held: windows that are not trained on, and choose what is kept. patience: epochs without a better loss
    there before it stops. range: where grids start. precision: of gradients; the rest is float32.

    The paper's rates (2e-5 and 1e-4, absolute) are for 4,096 steps of weights about 0.02 in size: a thousandth of a
    step, and half a hundredth of a scale. There are fewer steps here, and longer ones."""

    epochs: int = 8
    rate: float = 0.02
    grid_rate: float = 0.01
    batch: int = 2
    held: int = 4
    patience: int = 2
    range: RangeMethod = "mse"
    precision: Precision = "f32"

    def steps_of(self, windows: int) -> int:
        """Of one part, with so many windows."""
        return self.epochs * math.ceil(len(halves(windows, self.held)[0]) / self.batch)


class Trained:
    """One weight and its grid, as numbers that are trained: all of them in units of the grid that it starts with, so
    that a rate means the same whatever the weight's size."""

    def __init__(self, weight: Tensor, encoding: Encoding, start: RangeMethod) -> None:
        grid = (mse_grid if start == "mse" else minmax_grid)(weight, encoding)
        self._encoding, self._layout, self._unit = encoding, Layout.of(weight.shape, encoding), grid.scale
        blocked = self._layout.cut(weight) / grid.scale.reshape(self._layout.spread)
        self.weight = blocked.requires_grad_()
        self.scale = torch.ones_like(grid.scale).requires_grad_()
        self.zero = grid.zero_point.clone().requires_grad_(not encoding.symmetric)

    def value(self) -> Tensor:
        """The weight as it will read back, differentiable in all that is trained."""
        return fake_quantize(self._float(), self._grid(), self._encoding)

    def stored(self, name: str) -> QTensor:
        """What value() reads, as codes."""
        with torch.no_grad():
            return encode(self._float(), self._encoding, grid=self._grid(), name=name)

    @property
    def grid(self) -> list[Tensor]:
        """What is trained of it."""
        return [self.scale, self.zero] if self.zero.requires_grad else [self.scale]

    def _float(self) -> Tensor:
        return self._layout.join(self.weight * self._unit.reshape(self._layout.spread))

    def _grid(self) -> Grid:
        return nearest_grid(self.scale * self._unit, self.zero, self._encoding)


def blockap(
    problem: Problem,
    encodings: Mapping[str, Encoding],
    settings: Settings,
    seed: int,
    told: Told,
    bar: Iterator[object],
) -> dict[str, QTensor]:
    """The weights of one problem, stored: of what was looked at after each epoch, and of where it began, that of the
    least error on the windows that were held back.

    bar: moves on with each step. told: is given the losses. Raises PassError where the loss is no finite number, and
    names the part and the step.
    """
    trained = {n: Trained(w, encodings[n], settings.range) for n, w in problem.weights.items()}
    shown, held = halves(len(problem.inputs), settings.held)
    steps = settings.steps_of(len(problem.inputs))
    per_epoch = steps // settings.epochs
    optimiser = torch.optim.AdamW(
        [
            {"params": [t.weight for t in trained.values()], "first": settings.rate},
            {"params": [x for t in trained.values() for x in t.grid], "first": settings.grid_rate},
        ],
        weight_decay=0,
    )

    def look(step: int) -> tuple[float, dict[str, QTensor]]:
        stored = {name: t.stored(name) for name, t in trained.items()}
        loss = problem.loss({name: w.dequantize() for name, w in stored.items()}, held)
        refuse_divergence(loss, step, settings.rate, problem.name)
        told.look(step, loss)
        return loss, stored

    best, since = look(0), 0
    for step in range(steps):
        next(bar, None)
        if since >= settings.patience:
            continue
        for group in optimiser.param_groups:
            group["lr"] = group["first"] * falling(step, steps)
        with torch.enable_grad():
            values = {name: t.value() for name, t in trained.items()}
        chosen = [shown[i] for i in drawn(len(shown), settings.batch, seed, step)]
        with computing(settings.precision):
            loss, gradients = problem.gradients(values, chosen)
        refuse_divergence(loss, step, settings.rate, problem.name)
        told.step(step, loss, settings.rate * falling(step, steps))
        optimiser.zero_grad()
        torch.autograd.backward([values[n] for n in gradients], list(gradients.values()))
        optimiser.step()
        if (step + 1) % per_epoch == 0:
            now = look(step + 1)
            best, since = (now, 0) if now[0] < best[0] else (best, since + 1)
    return best[1]
