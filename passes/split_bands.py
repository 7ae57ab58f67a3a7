"""split-bands: hidden channels sorted by what their errors cost, and cut into bands that are weights of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from drawplate.analysis.bases import Barrier
from drawplate.analysis.channels import ValuePath, value_paths
from drawplate.analysis.hidden import HiddenAxis, hidden_axes, weight_name
from drawplate.analysis.sensitivity import Reading, measure
from drawplate.banding import cut, cut_values, whole_heads
from drawplate.costs import samples
from drawplate.errors import Refusal
from drawplate.facts import INTERFACE, WEIGHTS_FLOAT
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

    A channel's saliency is the expected damage of an error in proportion to the weights that write and read it, by a
    Fisher diagonal of rows and columns (analysis/sensitivity.py) of the calibration text; their geometric mean, since
    bits go by ratios. Without a text it is the weights' own squares, which is told.

    bands: one number of bands of equal width, or several numbers, their shares. where: "mlp", what a pointwise function
    stands in (a gate may too); "values", the channels within each head between an attention's values and what reads the
    heads; or "all". multiple: every width is a multiple of
    so many channels, so that groups of that length along the columns fit. tokens: of the text, that are read.
    """

    bands: tuple[int, ...] = (4,)
    where: Literal["mlp", "values", "all"] = "mlp"
    multiple: int = 64
    tokens: int = 8192

    name: ClassVar = "split-bands"
    requires: ClassVar = frozenset({WEIGHTS_FLOAT})
    preserves: ClassVar = INTERFACE | {WEIGHTS_FLOAT}
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
        axes = list(self._axes(program, env)) if self.where in ("mlp", "all") else []
        paths = list(self._paths(program, env)) if self.where in ("values", "all") else []
        if not axes and not paths:
            env.refuse(Refusal(program.name, "", "nothing is cut into bands"))
        readings = self._readings(program, env) if axes or paths else {}
        editor = program.edit()
        for axis in env.progress(axes, "hidden channels") if axes else ():
            costs = axis_costs(program, axis, readings)
            cut(editor, axis, by_saliency(costs).split(self._widths(axis.width)))
        for path in env.progress(paths, "values") if paths else ():
            order = by_saliency(value_costs(program, path, readings))
            cut_values(editor, path, order, self._widths(order.shape[1]))
        return editor.finish()

    def _axes(self, program: Program, env: Env) -> Iterator[HiddenAxis]:
        for found in hidden_axes(program):
            if isinstance(found, Barrier):
                env.refuse(_refusal(found))
            elif self._divides(found.name, found.width, 1, env):
                yield found

    def _paths(self, program: Program, env: Env) -> Iterator[ValuePath]:
        for found in value_paths(program):
            if isinstance(found, Barrier):
                env.refuse(_refusal(found))
            elif not whole_heads(found):
                why = "its heads interleave, or are fused with other rows"
                env.refuse(_refusal(Barrier(found.writer, why)))
            else:
                heads = min((len(columns) for _, columns in found.readers), default=1)
                if self._divides(weight_name(found.writer), found.rows.shape[1], heads, env):
                    yield found

    def _widths(self, width: int) -> list[int]:
        """Channels of each band."""
        return [width * share // sum(self.shares) for share in self.shares]

    def _divides(self, name: str, width: int, heads: int, env: Env) -> bool:
        """Can `heads` times so many channels be cut into bands that are multiples? Else a refusal."""
        if self._even(self.shares, width, heads):
            return True
        what = "x".join(map(str, self.bands)) if len(self.bands) > 1 else f"{self.bands[0]} equal"
        each = f"{width} channels in each of {heads} heads" if heads > 1 else f"{width} channels"
        why = f"its {each} cannot be cut into {what} bands that are multiples of {self.multiple}"
        numbers = [n for n in range(2, 9) if self._even((1,) * n, width, heads)]
        fix = f"use bands={numbers[-1]}" if numbers else "use a smaller multiple"
        env.refuse(Refusal(name, "aten.linear", why, fix=fix))
        return False

    def _even(self, shares: Sequence[int], width: int, heads: int) -> bool:
        whole = sum(shares)
        return all(width * s % whole == 0 and width * s // whole * heads % self.multiple == 0 for s in shares)

    def _readings(self, program: Program, env: Env) -> Readings:
        """What the text says of every weight; nothing without one."""
        if hollow(program):
            return {}
        if env.calibration is None:
            env.tell(f"{self.name}: channels are sorted by the weights alone, since there is no text")
            return {}
        return measure(program, samples("kl", program, env.calibration, self.tokens, env.seed), env).readings


def by_saliency(costs: Sequence[Tensor]) -> Tensor:
    """int [.., n]: indices of the channels, the most salient first. costs: [.., n], one for each weight.

    >>> by_saliency([torch.tensor([1.0, 4.0, 0.0]), torch.tensor([9.0, 1.0, 1.0])])
    tensor([0, 1, 2])
    """
    tiny = torch.finfo(torch.float64).tiny
    mean = torch.stack([c.double().clamp(min=tiny).log() for c in costs]).mean(0)
    if mean.is_meta:  # without contents any order will do
        return torch.arange(mean.shape[-1]).expand(mean.shape).contiguous()
    return mean.argsort(dim=-1, descending=True, stable=True)


def axis_costs(program: Program, axis: HiddenAxis, readings: Readings) -> list[Tensor]:
    """f64 [n] for each weight that writes or reads the axis."""
    written = [_costs(program, weight_name(w.linear), readings)[0][w.rows] for w in axis.writers]
    return written + [_costs(program, weight_name(reader), readings)[1] for reader in axis.readers]


def value_costs(program: Program, path: ValuePath, readings: Readings) -> list[Tensor]:
    """f64 [heads, d] for each weight; of a reader the sum over the query heads that read one head's values."""
    heads, size = path.rows.shape
    read = [_costs(program, weight_name(r), readings)[1][c].reshape(heads, -1, size).sum(1) for r, c in path.readers]
    return [_costs(program, weight_name(path.writer), readings)[0][path.rows], *read]


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
