"""Rounding that is learned block by block: up or down, and how much of each range to cover, by signs of gradients.

Cheng et al. 2023, arXiv:2309.05516 (AutoRound). A weight is stored as Q(w + v s), v in [-1/2, 1/2] for each element,
on the grid that covers [a min, b max] of each block of it, a and b in [0, 1]; s is its scale. At v = 0, a = b = 1 that
is plain rounding. A step moves each v, a and b by the rate, against the sign of its gradient. blockwise.py brings the
problems.
"""

from __future__ import annotations

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
    grid_from_range,
    minmax_grid,
    mse_grid,
)
from drawplate.learning.descent import Told, drawn, refuse_divergence

LOOK_EVERY = 25  # steps: then the loss of all windows is measured, and the best is what counts


@dataclass(frozen=True)
class Settings:
    """steps, of each part. rate: how far the first step moves, falling to 0 on a line; None is 1 / steps, so that a
    whole run can move by 1/2. batch: windows of each step. range: where the ranges start."""

    steps: int = 200
    rate: float | None = None
    batch: int = 8
    range: RangeMethod = "minmax"

    @property
    def first_rate(self) -> float:
        """The rate as a number."""
        return 1 / self.steps if self.rate is None else self.rate

    def steps_of(self, windows: int) -> int:
        """Of one part, with so many windows."""
        return self.steps


class LearnedRounding:
    """One weight's offsets and ranges, and what the reference quantiser makes of the weight with them."""

    def __init__(self, weight: Tensor, encoding: Encoding, start: RangeMethod) -> None:
        self._weight, self._encoding, self._layout = weight, encoding, Layout.of(weight.shape, encoding)
        blocked = self._layout.cut(weight)
        self._low, self._high = blocked.amin(self._layout.axes), blocked.amax(self._layout.axes)
        share = torch.ones_like(self._low)
        if start == "mse":
            share = (mse_grid(weight, encoding).scale / minmax_grid(weight, encoding).scale).clamp(0, 1)
        self._offset = torch.zeros_like(weight)
        self._share_low, self._share_high = share, share.clone()

    def value(self) -> Tensor:
        """The weight as it will read back, differentiable in what is learned."""
        moved, grid = self._moved()
        return fake_quantize(moved, grid, self._encoding)

    def stored(self, name: str) -> QTensor:
        """What value() reads, as codes."""
        with torch.no_grad():
            moved, grid = self._moved()
            return encode(moved, self._encoding, grid=grid, name=name)

    def descend(self, gradient: Tensor, rate: float) -> None:
        """One step against the signs of the gradients. gradient: in value()."""
        learned = (self._offset, self._share_low, self._share_high)
        for x in learned:
            x.requires_grad_()
        with torch.enable_grad():
            found = torch.autograd.grad(self.value(), learned, gradient)
        with torch.no_grad():
            for x, g, (low, high) in zip(learned, found, ((-0.5, 0.5), (0, 1), (0, 1)), strict=True):
                x.requires_grad_(False).sub_(g.sign_(), alpha=rate).clamp_(low, high)

    def _moved(self) -> tuple[Tensor, Grid]:
        grid = grid_from_range(self._low * self._share_low, self._high * self._share_high, self._encoding)
        offset = self._layout.cut(self._offset) * grid.scale.reshape(self._layout.spread)
        return self._weight + self._layout.join(offset), grid


def signround(
    problem: Problem,
    encodings: Mapping[str, Encoding],
    settings: Settings,
    seed: int,
    told: Told,
    bar: Iterator[object],
) -> dict[str, QTensor]:
    """The weights of one problem, stored: of what was looked at, plain rounding included, that of the least error.

    bar: moves on with each step. told: is given the losses. Raises PassError where the loss is no finite number,
    and names the part and the step.
    """
    rate, count = settings.first_rate, len(problem.inputs)
    learned = {n: LearnedRounding(w, encodings[n], settings.range) for n, w in problem.weights.items()}

    def look(step: int) -> tuple[float, dict[str, QTensor]]:
        stored = {name: rounding.stored(name) for name, rounding in learned.items()}
        loss = problem.loss({name: w.dequantize() for name, w in stored.items()})
        refuse_divergence(loss, step, rate, problem.name)
        told.look(step, loss)
        return loss, stored

    best = look(0)
    for step in range(settings.steps):
        next(bar, None)
        with torch.no_grad():
            values = {name: rounding.value() for name, rounding in learned.items()}
        loss, gradients = problem.gradients(values, drawn(count, min(count, settings.batch), seed, step))
        refuse_divergence(loss, step, rate, problem.name)
        now = rate * (1 - step / settings.steps)
        told.step(step, loss, now)
        for name, gradient in gradients.items():
            learned[name].descend(gradient, now)
        if (step + 1) % LOOK_EVERY == 0 or step + 1 == settings.steps:
            best = min(best, look(step + 1), key=lambda found: found[0])
    return best[1]
