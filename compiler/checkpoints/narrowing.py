"""narrow-floats: what a file holds in fewer bits than the program computes with is rounded before it is written."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from drawplate.encoding import SCALE_DTYPES, Grid, QTensor, ScaleDtype
from drawplate.errors import PassError
from drawplate.facts import INTERFACE, NUMBERS
from drawplate.invariants import SIGNATURE
from drawplate.passbase import Certificate, Env, Invariant, Pass
from drawplate.program import Program, Weight


class Narrows(Invariant):
    """The same graph, the same integers and zero points; scales and what is floating point moved by no more than
    rounding to the narrower dtype explains. error, bound: of the largest relative change, in units of that rounding."""

    name = "NARROWS"

    def measure(self, before: Program, after: Program, seed: int) -> Certificate:
        if before.weights.keys() != after.weights.keys() or str(_bare(before)) != str(_bare(after)):
            return Certificate("", self.name, False, math.inf, 1.0, "the graph changed")
        changed = {n: (w, after.weights[n]) for n, w in before.weights.items() if after.weights[n] is not w}
        worst = max((_moved(a, b) for a, b in changed.values()), default=0.0)
        return Certificate("", self.name, worst <= 1.0, worst, 1.0, f"{len(changed)} weights rounded")


NARROWS = Narrows()


@dataclass(frozen=True)
class NarrowFloats(Pass):
    """Round what will be stored in a narrower floating dtype, so that the program that is measured is the one that is
    written: scales to `scales`, integers and zero points staying as they are, and matrices that stay floating point to
    `floats`. Vectors keep what they have: norms and biases take no room. In the graph all remain what they are.
    """

    floats: ScaleDtype = "f16"
    scales: ScaleDtype = "f16"

    name: ClassVar = "narrow-floats"
    preserves: ClassVar = NUMBERS | INTERFACE
    keeps: ClassVar = (SIGNATURE, NARROWS)

    def run(self, program: Program, env: Env) -> Program:
        editor = program.edit()
        scales = 0
        for name, weight in program.weights.items():
            if isinstance(weight, QTensor):
                if weight.encoding.scale != self.scales:
                    editor.weights[name] = _scaled(name, weight, self.scales)
                    scales += 1
            elif weight.is_floating_point() and weight.dim() > 1:
                narrow = _narrowed(name, weight, SCALE_DTYPES[self.floats])
                if weight.is_meta or not torch.equal(narrow, weight):
                    editor.weights[name] = narrow
        if scales:
            env.tell(f"the scales of {scales} weights were rounded to {self.scales}; with scale={self.scales} they are "
                     "chosen so")  # fmt: skip
        return editor.finish()


def _scaled(name: str, weight: QTensor, dtype: ScaleDtype) -> QTensor:
    """The same integers on a grid whose scales are numbers of this dtype."""
    scale = _narrowed(f"scales of {name}", weight.grid.scale, SCALE_DTYPES[dtype])
    if not scale.is_meta and not bool((scale > 0).all()):
        raise PassError(
            f"scales of {name} are too small for {dtype}",
            why=f"the smallest is {float(weight.grid.scale.min()):.3g}, which would become 0",
            fix="scale the weights, or use a format whose scales are wider",
        )
    encoding = replace(weight.encoding, scale=dtype)
    return replace(weight, grid=Grid(scale, weight.grid.zero_point), encoding=encoding)


def _narrowed(name: str, x: Tensor, dtype: torch.dtype) -> Tensor:
    """x rounded to dtype, in x's own. Raises PassError where that is no number any more."""
    out = x.to(dtype).to(x.dtype)
    if not x.is_meta and not bool(torch.isfinite(out).all()):
        raise PassError(
            f"{name} cannot be stored as {dtype}".replace("torch.", ""),
            why=f"it reaches {float(x.abs().max()):.3g}",
            fix="use another floats= of the backend, such as bf16",
        )
    return out


def _bare(program: Program) -> Program:
    """Without scale dtypes, which a text says."""
    weights = {
        n: replace(w, encoding=replace(w.encoding, scale="f32")) if isinstance(w, QTensor) else w
        for n, w in program.weights.items()
    }
    return replace(program, weights=weights, facts=frozenset())


def _moved(a: Weight, b: Weight) -> float:
    """The largest change, over what rounding to the nearest number of the dtype may take; inf if it is none of that."""
    if isinstance(a, QTensor) and isinstance(b, QTensor):
        same = torch.equal(a.integers(), b.integers()) and torch.equal(a.grid.zero_point, b.grid.zero_point)
        return _units(a.grid.scale, b.grid.scale, SCALE_DTYPES[b.encoding.scale]) if same else math.inf
    if isinstance(a, QTensor) or isinstance(b, QTensor) or a.shape != b.shape:
        return math.inf
    fits = [d for d in (torch.float16, torch.bfloat16) if torch.equal(b.to(d).to(b.dtype), b)]
    return min((_units(a, b, dtype) for dtype in fits), default=math.inf)


def _units(a: Tensor, b: Tensor, dtype: torch.dtype) -> float:
    """|a - b| over half a unit of the dtype at a."""
    info = torch.finfo(dtype)
    half = a.abs().clamp(min=info.smallest_normal) * info.eps / 2
    return float(((a - b).abs() / half).max()) if a.numel() else 0.0
