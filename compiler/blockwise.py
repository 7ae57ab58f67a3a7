"""A program's parts stored one after the other, each so that it still gives what it gave in floating point.

Block by block there is a small problem of its own: inputs as the stored parts before it make them, targets as the model
made them before anything was stored (block reconstruction: Li et al. 2021, arXiv:2102.05426, sec. 3.2). This file
brings the problems, one at a time; what solves them is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from drawplate.analysis.parts import Part, parts
from drawplate.encoding import Encoding, QTensor, as_read
from drawplate.learning.state import Aside
from drawplate.partwise import Values, run_part
from drawplate.program import Program
from drawplate.ranks import add_up_gradients, share, total
from drawplate.storing import as_stored, tensors_behind
from drawplate.streaming import Room

Weights = Mapping[str, Tensor]
SMALLEST = 1e-12  # a token's mean square that errors are divided by


@dataclass(frozen=True, eq=False)
class Problem:
    """One part whose weights are to be stored.

    weights: those weights, f32, by name; others: what else the part reads. inputs, targets: for each window what the
    part reads and what it should give.
    """

    part: Part
    weights: Weights
    others: Weights
    inputs: Sequence[Values]
    targets: Sequence[Values]

    @property
    def name(self) -> str:
        """The block's, or its first weight's."""
        return self.part.name or next(iter(self.weights))

    def loss(self, weights: Weights, windows: Sequence[int] | None = None) -> float:
        """What the part gives with these weights in the place of its own: its squared error as a share of each token's
        square, the mean over these windows, or all."""
        chosen = range(len(self.inputs)) if windows is None else windows
        with torch.no_grad():
            return total(sum(float(self._loss(weights, i)) for i in share(chosen))) / len(chosen)

    def gradients(self, weights: Weights, windows: Sequence[int]) -> tuple[float, dict[str, Tensor]]:
        """The loss of some windows and its gradient in each weight. One window's activations are alive at a time."""
        leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
        found = 0.0
        for i in share(windows):
            with torch.enable_grad():
                loss = self._loss(leaves, i) / len(windows)
                loss.backward()
            found += float(loss.detach())
        add_up_gradients(leaves.values())
        return total(found), {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}

    def _loss(self, weights: Weights, window: int) -> Tensor:
        made = run_part(self.part, self.inputs[window], {**self.others, **weights})
        errors = [
            _relative_error(made[node], target)
            for node, target in self.targets[window].items()
            if isinstance(target, Tensor) and target.is_floating_point()
        ]
        return torch.stack(errors).sum()


def _relative_error(made: Tensor, target: Tensor) -> Tensor:
    """The mean over tokens of ||made - target||^2 / ||target||^2, of [.., tokens, channels].

    What reads a block's value norms it first, so an error counts by the size of its token. Without that the few tokens
    of massive activations (Sun et al. 2024, arXiv:2402.17762) outweigh all others by orders of magnitude.
    """
    size = target.square().mean(-1).clamp(min=SMALLEST)
    return ((made - target).square().mean(-1) / size).mean()


Solver = Callable[[Problem], Mapping[str, QTensor]]


def store_blockwise(
    program: Program,
    encodings: Mapping[str, Encoding],
    inputs: Sequence[Sequence[Tensor]],
    solve: Solver,
    aside: Aside,
    *,
    budget: int,
) -> dict[str, QTensor]:
    """Each of these weights as `solve` stores it, by name, part by part in the program's order.

    Every weight is read in one part only: see in_one_part. aside: takes each part's result, so that a run that was
    killed goes on behind the last one. budget: bytes of activations that stay in memory, those beyond it are in files.
    """
    room = Room(budget)
    ends = [n for n in program.graph.nodes if n.op == "placeholder"]
    exact = {node: [piece[i] for piece in inputs] for i, node in enumerate(ends)}
    actual = dict(exact)
    stored: dict[str, QTensor] = {}
    todo = _until(parts(program), encodings)
    for index, part in enumerate(todo):
        weights = {name: as_read(program.weights[name]) for name in part.weights}
        wanted = [name for name in part.weights if name in encodings]
        touched = any(actual[n] is not exact[n] for n in part.needs)
        targets = _through(part, exact, weights, room)
        if wanted:
            mine = {name: weights.pop(name) for name in wanted}
            problem = Problem(part, mine, weights, _windows(part.needs, actual), _windows(part.gives, targets))
            kept = aside.load(_name(index))
            found = as_stored(kept[0], {n: encodings[n] for n in wanted}) if kept else dict(solve(problem))
            if not kept:
                aside.save(_name(index), {k: t for n, w in found.items() for k, t in tensors_behind(n, w).items()})
            stored |= found
            weights |= {name: w.dequantize() for name, w in found.items()}
        actual |= _through(part, actual, weights, room) if touched or wanted else targets
        exact |= targets
        later = {n for other in todo[index + 1 :] for n in other.needs}
        exact, actual = ({n: v for n, v in chain.items() if n in later} for chain in (exact, actual))
    return stored


def unsolved(program: Program, encodings: Mapping[str, Encoding], aside: Aside) -> int:
    """How many parts a solver will be asked about: those with weights to store, without those put aside before."""
    todo = (i for i, part in enumerate(parts(program)) if set(part.weights) & set(encodings))
    return sum(aside.load(_name(i)) is None for i in todo)


def in_one_part(program: Program) -> frozenset[str]:
    """The weights that one part alone reads, and there one operator."""
    readers: dict[str, int] = {}
    for part in parts(program):
        for node in part.nodes:
            for read in node.all_input_nodes:
                if read.op == "get_attr":
                    readers[str(read.target)] = readers.get(str(read.target), 0) + 1
    return frozenset(name for name, count in readers.items() if count == 1)


def _until(todo: list[Part], encodings: Mapping[str, Encoding]) -> list[Part]:
    """Up to the last part with a weight to store: what comes after it need not run."""
    last = max((i for i, part in enumerate(todo) if set(part.weights) & set(encodings)), default=-1)
    return todo[: last + 1]


def _through(part: Part, values: Mapping[fx.Node, list[Any]], weights: Weights, room: Room) -> dict[fx.Node, list[Any]]:
    """What the part gives for each window."""
    made: dict[fx.Node, list[Any]] = {n: [] for n in part.gives}
    with torch.no_grad():
        for given in _windows(part.needs, values):
            for node, value in run_part(part, given, weights).items():
                made[node].append(room.hold(value))
    return made


def _windows(nodes: Sequence[fx.Node], values: Mapping[fx.Node, list[Any]]) -> list[Values]:
    """Values by node and window -> for each window the values by node."""
    return [dict(zip(nodes, row, strict=True)) for row in zip(*(values[n] for n in nodes), strict=True)]


def _name(part: int) -> str:
    """Of what is put aside of it."""
    return f"part-{part}"
