"""What each candidate for a weight would do to a cost, with the very errors that it has.

To second order the cost rises by half the Fisher information's quadratic form in what moves: 1/2 E[(g . d)^2], where g
is the cost's gradient in the weights, of labels that the model draws itself, and d is how they move. Of a linear, g . d
is the sum over tokens of g_t^T D x_t. So nothing is assumed about rows, columns, or how errors hang together within a
weight: a Fisher diagonal of rows times columns is off by factors of up to five where inputs are correlated, or errors
are, as those of GPTQ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from drawplate.analysis.sensitivity import observe
from drawplate.analysis.sites import sites
from drawplate.canonical.match import aten, is_call
from drawplate.costs import Sample
from drawplate.encoding import Grid, QTensor, dequantize
from drawplate.passbase import Env
from drawplate.program import Program

# Tokens whose shifts add up before the square. One by one, what neighbours share is missed; over whole windows too few
# sums are left to average. From 16 to 64 the estimates scatter least around measured KLs (benchmarks/allocation.md); a
# short text is cut finer, so that there are SUMS of them.
CHUNK, SUMS = 16, 256
PIECE = 1 << 20  # elements of a weight that are looked at together

Candidates = Mapping[str, Sequence[QTensor]]


@dataclass(frozen=True)
class Moves:
    """shifts: by the weight's name f64 [candidates, chunks], by how much each candidate shifts the cost of each chunk
    of tokens to first order. Half the sum of their squares, per token, is the damage."""

    shifts: Mapping[str, Tensor]
    tokens: int

    def damage(self, chosen: Mapping[str, int]) -> float:
        """The expected rise of the cost per token if each weight is replaced by its candidate of this index."""
        shift: Any = sum(self.shifts[name][index] for name, index in chosen.items())
        return 0.5 * float(torch.as_tensor(shift).square().sum()) / self.tokens


def moves(program: Program, candidates: Candidates, samples: Iterable[Sample], env: Env) -> Moves:
    """Run the samples forward and back, one at a time. Raises what sensitivity.measure raises."""
    samples = list(samples)
    length = sum(inputs[0].numel() for sample in samples for inputs in sample.inputs)
    shifts = _Shifts(program, candidates, min(CHUNK, max(1, length // SUMS)))
    tokens = observe(program, samples, shifts, env)
    return Moves({name: torch.cat(found, 1) for name, found in shifts.of.items()}, tokens)


class _Shifts:
    """Of every watched weight, sequence by sequence."""

    def __init__(self, program: Program, candidates: Candidates, chunk: int) -> None:
        self._candidates, self._chunk, self._tokens = candidates, chunk, 0
        self._weights: dict[str, Any] = {name: program.weights[name] for name in candidates}
        self._names = {node: s.name for s in sites(program) if candidates.get(s.name) for node in s.nodes}
        self.of: dict[str, list[Tensor]] = {name: [] for name in candidates}

    def begin(self, tokens: int) -> None:
        """Sequences of one cost, such as a question's choices, share what goes in front: they are one chunk."""
        self._tokens, chunks = tokens, max(1, -(-tokens // self._chunk))
        for name, found in self.of.items():
            found.append(torch.zeros(len(self._candidates[name]), chunks, dtype=torch.float64))

    def see(self, node: fx.Node, args: Sequence[Any], result: Tensor) -> None:
        """One operator that has run."""
        name = self._names.get(node)
        if name is None:
            return
        result.requires_grad_()  # the first ones read nothing that has a gradient
        seen = self._looked_up if is_call(node, aten.embedding.default) else self._multiplied
        read = args[1] if is_call(node, aten.embedding.default) else args[0].detach()
        result.register_hook(lambda gradient: seen(name, read, gradient))

    def _multiplied(self, name: str, read: Tensor, gradient: Tensor) -> None:
        """What each candidate gets wrong, against the gradient; some rows of the weight at a time."""
        x, g = (t.flatten(0, -2) for t in (read, gradient))
        weight = self._weights[name]
        step = max(1, PIECE // weight.shape[1])
        for start in range(0, len(weight), step):
            rows = slice(start, start + step)
            wrong = (x @ (stored - weight[rows]).T for stored in self._rows(name, rows))
            self._add(name, [(y * g[:, rows]).sum(1) for y in wrong])

    def _looked_up(self, name: str, ids: Tensor, gradient: Tensor) -> None:
        rows, place = ids.flatten().unique(return_inverse=True)
        g, weight = gradient.flatten(0, -2), self._weights[name][rows]
        self._add(name, [((stored - weight)[place] * g).sum(1) for stored in self._rows(name, rows)])

    def _add(self, name: str, shifts: Iterable[Tensor]) -> None:
        """Of each candidate the shift at each token. Rows that are not tokens, a last position's, are one chunk."""
        shifts = list(shifts)
        if len(shifts[0]) != self._tokens:
            self.of[name][-1][:, 0] += torch.stack([s.double().sum() for s in shifts])
            return
        sums = [torch.stack([part.sum() for part in s.double().split(self._chunk)]) for s in shifts]
        self.of[name][-1] += torch.stack(sums)

    def _rows(self, name: str, rows: Any) -> list[Tensor]:
        return [_rows(candidate, rows) for candidate in self._candidates[name]]


def _rows(stored: QTensor, rows: Any) -> Tensor:
    """These rows of the values that it stands for."""
    if stored.encoding.blocks(stored.shape)[0] != 1:
        return stored.dequantize()[rows]
    grid = Grid(stored.grid.scale[rows], stored.grid.zero_point[rows])
    return dequantize(stored.integers()[rows], grid, stored.encoding).float()
