"""How far rounding moved a weight or an activation, in steps of its encoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from drawplate.encoding import (
    Encoding,
    Grid,
    Layout,
    QTensor,
    dequantize,
    dynamic_grid,
    fake_quantize,
    minmax_grid,
    quantize,
    row_chunks,
    wide,
)
from drawplate.probing import run
from drawplate.program import Program, Weight

# relative error of a number that was rounded to the scale's dtype
SCALE_ROUNDING = {"f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}


@dataclass(frozen=True)
class RoundingError:
    """steps: the largest error of an element within the range, in steps; bound: what it may be. clipped: how many of
    the elements lie further than that beyond the range, the farthest by clip_steps. why: what is wrong, if anything."""

    name: str
    steps: float
    bound: float
    clipped: int = 0
    clip_steps: float = 0.0
    elements: int = 0
    activation: bool = False
    why: str = ""

    @property
    def holds(self) -> bool:
        return not self.why and self.steps <= self.bound

    def __str__(self) -> str:
        return f"{self.name}: {self.why or f'off by {self.steps:.3g} steps, more than {self.bound:.3g}'}"


def half_step(encoding: Encoding) -> float:
    """Half a step, and what float32 may lose of a quotient of up to 2^bits. A sum of powers of two, and so the same
    number in float32 and float64: what is compared with it in one is compared with it again in the other."""
    return 0.5 + 2.0 ** (encoding.bits - 21) + 2.0**-20


def clip_allowance(encoding: Encoding) -> float:
    """How far, in steps, min-max itself clips: by rounding the scale, the zero point, and (symmetric) by the missing
    positive code."""
    low, high = encoding.range
    middle = 0.0 if encoding.symmetric else 0.5
    return half_step(encoding) + middle + (high - low) * SCALE_ROUNDING[encoding.scale]


def weight_error(name: str, before: Weight, after: Weight) -> RoundingError:
    """How far a weight moved. It was stored as integers, or cast to a narrower dtype."""
    if isinstance(before, QTensor) or tuple(before.shape) != tuple(after.shape):
        return RoundingError(name, torch.inf, 0.5, why="it was changed, not rounded")
    if isinstance(after, QTensor):
        return stored_error(name, before, after)
    moved = (after.float() - before.float()).abs()
    unit = before.float().abs() * torch.finfo(after.dtype).eps + torch.finfo(after.dtype).smallest_normal
    return RoundingError(name, float((moved / unit).max()), 0.5, elements=before.numel())


def stored_error(name: str, x: Tensor, q: QTensor) -> RoundingError:
    """How far x moved when it was stored as q. A chunk of rows at a time."""
    encoding, codes = q.encoding, q.integers()
    worst, beyond, clipped, squared, reference = 0.0, 0.0, 0, 0.0, 0.0
    for rows in row_chunks(x.shape, encoding):
        part, grid = wide(x[rows]), Grid(q.grid.scale[rows], q.grid.zero_point[rows])
        values = dequantize(codes[rows], grid, encoding)
        steps = in_steps(values - part, grid.scale, encoding)
        outside = ends(codes[rows], part - values, encoding) & (steps > half_step(encoding))
        worst = max(worst, float(torch.where(outside, 0.0, steps).max()))
        if bool(outside.any()):
            clipped += int(outside.sum())
            beyond = max(beyond, float(steps[outside].max()))
        if beyond > clip_allowance(encoding):
            plain = fake_quantize(part, minmax_grid(part, encoding), encoding)
            squared += float((values - part).square().sum())
            reference += float((plain - part).square().sum())
    more = squared > reference * (1 + 1e-6)
    why = f"clipped by {beyond:.3g} steps, with more squared error than the min-max range" if more else ""
    return RoundingError(name, worst, half_step(encoding), clipped, beyond, x.numel(), why=why)


def activation_errors(program: Program, inputs: Sequence[Tensor]) -> list[RoundingError]:
    """How far each encoded activation of the program moves on these inputs."""
    found: list[RoundingError] = []

    def watch(node: fx.Node, args: tuple[Any, ...], value: Any) -> None:
        if node.target is torch.ops.drawplate.encode.default:
            found.append(activation_error(node.meta.get("site") or node.name, args[0], value, Encoding.parse(args[1])))

    run(program, inputs, watch=watch)
    return found


def activation_error(name: str, x: Tensor, y: Tensor, encoding: Encoding) -> RoundingError:
    """How far x moved when it was encoded as y, on the grid that x has."""
    grid = dynamic_grid(x, encoding)
    steps = in_steps(wide(y) - wide(x), grid.scale, encoding)
    outside = ends(quantize(x, grid, encoding), x - y, encoding) & (steps > half_step(encoding))
    beyond = float(steps[outside].max()) if bool(outside.any()) else 0.0
    # y itself was rounded to x's dtype
    bound = half_step(encoding) + 2.0**encoding.bits * torch.finfo(x.dtype).eps
    over = beyond > clip_allowance(encoding) + 2.0**encoding.bits * torch.finfo(x.dtype).eps
    worst = float(torch.where(outside, 0.0, steps).max())
    why = f"clipped by {beyond:.3g} steps" if over else ""
    return RoundingError(name, worst, bound, int(outside.sum()), beyond, x.numel(), activation=True, why=why)


def in_steps(error: Tensor, scale: Tensor, encoding: Encoding) -> Tensor:
    """|error| of each element over its block's scale; in error's shape."""
    layout = Layout.of(error.shape, encoding)
    return layout.join(layout.cut(error.abs()) / scale.reshape(layout.spread))


def ends(codes: Tensor, excess: Tensor, encoding: Encoding) -> Tensor:
    """Where an element has an end code and lies beyond it. excess: the element minus what its code stands for."""
    low, high = encoding.range
    return ((codes == low) & (excess < 0)) | ((codes == high) & (excess > 0))
