"""split-bands: hidden channels sorted by what their errors cost, and cut into bands that are weights of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from drawplate.analysis.bases import Barrier
from drawplate.analysis.hidden import HiddenAxis, hidden_axes, weight_name
from drawplate.analysis.sensitivity import Reading, measure
from drawplate.banding import cut
from drawplate.costs import samples
from drawplate.errors import Refusal
from drawplate.facts import CACHE_INSERTED, HEAD_LAST_POSITION, WEIGHTS_FLOAT
from drawplate.invariants import SAME_FUNCTION, SIGNATURE
from drawplate.passbase import Env, Pass
from drawplate.program import Program
from drawplate.rehearsal import hollow

Readings = Mapping[str, tuple[Reading, ...]]


@dataclass(frozen=True)
class SplitBands(Pass):
    """Bits within a weight: channels between linears are sorted, the most salient first, and cut into bands. Each band
    is a linear of its own in front and behind, whose results are added up, so every backend can hold it and
    allocate-bits gives each its own encoding (picoLLM allocates to columns within a weight).

    A channel's saliency is the expected damage of an error in proportion to the weights that write and read it,
    measured on the calibration text as allocate-bits does; their geometric mean, since bits go by ratios. Without a
    text it is the weights' own squares, which is told.

    bands: one number of bands of equal width, or several numbers, their shares. multiple: every width is a multiple of
    so many channels, so that groups of that length along the columns fit. tokens: of the text, that are read.
    """

    bands: tuple[int, ...] = (4,)
    multiple: int = 64
    tokens: int = 8192

    name: ClassVar = "split-bands"
    requires: ClassVar = frozenset({WEIGHTS_FLOAT})
    preserves: ClassVar = frozenset({WEIGHTS_FLOAT, CACHE_INSERTED, HEAD_LAST_POSITION})
    keeps: ClassVar = (SIGNATURE, SAME_FUNCTION)
    slow: ClassVar = True

    def __post_init__(self) -> None:
        if not self.bands or min(self.bands) < 1 or len(self.shares) < 2:
            raise ValueError(
                f"bands={'x'.join(map(str, self.bands))} is neither a number of 2 or more nor several shares"
            )
        if self.multiple < 1:
            raise ValueError(f"multiple={self.multiple} is not above 0")
        if self.tokens < 2:
            raise ValueError(f"tokens={self.tokens} is not above 1")

    @property
    def shares(self) -> tuple[int, ...]:
        """Of each band."""
        return (1,) * self.bands[0] if len(self.bands) == 1 else self.bands

    def run(self, program: Program, env: Env) -> Program:
        axes = []
        for found in hidden_axes(program):
            if isinstance(found, Barrier):
                env.refuse(_refusal(found))
            elif widths := self._widths(found, env):
                axes.append((found, widths))
        if not axes:
            env.refuse(Refusal(program.name, "", "no hidden axis is cut into bands"))
        readings = self._readings(program, env) if axes else {}
        editor = program.edit()
        for axis, widths in env.progress(axes, self.name):
            order = torch.arange(axis.width) if hollow(program) else by_saliency(program, axis, readings)
            cut(editor, axis, order.split(widths))
        return editor.finish()

    def _widths(self, axis: HiddenAxis, env: Env) -> list[int]:
        """Channels of each band; none, and a refusal, where they do not divide."""
        whole = sum(self.shares)
        if all(axis.width * share % (whole * self.multiple) == 0 for share in self.shares):
            return [axis.width * share // whole for share in self.shares]
        what = " : ".join(map(str, self.bands)) if len(self.bands) > 1 else f"{whole} equal"
        why = f"its {axis.width} channels cannot be cut into {what} bands that are multiples of {self.multiple}"
        numbers = [n for n in range(2, 9) if axis.width % (n * self.multiple) == 0]
        fix = f"use bands={numbers[-1]}" if numbers else "use a smaller multiple"
        env.refuse(Refusal(axis.name, "aten.linear", why, fix=fix))
        return []

    def _readings(self, program: Program, env: Env) -> Readings:
        """What the text says of every weight; nothing without one."""
        if hollow(program):
            return {}
        if env.calibration is None:
            env.tell(f"{self.name}: channels are sorted by the weights alone, since there is no text")
            return {}
        return measure(program, samples("kl", program, env.calibration, self.tokens, env.seed), env).readings


def by_saliency(program: Program, axis: HiddenAxis, readings: Readings) -> Tensor:
    """int [n]: the channels of the axis, the most salient first."""
    costs = [
        *(_costs(program, weight_name(w.linear), readings)[0][w.rows] for w in axis.writers),
        *(_costs(program, weight_name(reader), readings)[1] for reader in axis.readers),
    ]
    tiny = torch.finfo(torch.float64).tiny
    return torch.stack([c.clamp(min=tiny).log() for c in costs]).mean(0).argsort(descending=True, stable=True)


def _costs(program: Program, name: str, readings: Readings) -> tuple[Tensor, Tensor]:
    """f64 [out] and [in]: what a weight's rows and columns would cost if each element were wrong by itself."""
    weight: Any = program.weights[name]
    squares = weight.double().square()
    found = readings.get(name)
    if not found:
        return squares.sum(1), squares.sum(0)
    fisher = sum(torch.outer(r.rows, r.columns) for r in found)
    return (squares * fisher).sum(1), (squares * fisher).sum(0)


def _refusal(barrier: Barrier) -> Refusal:
    node = barrier.node
    site = str(node.meta.get("site") or node.name)
    return Refusal(site, "aten.linear", f"not cut into bands: {barrier.why}", str(node.meta.get("source") or ""))
