"""A turned program as a function of its rotations, rounded as the target would, with gradients block by block.

The graph is the turned one; its weights are computed from the program's and the matrices where they are read, and let
go. Nothing but one value per block is kept on the way forward; on the way back each block is computed again and its
share of the gradient added up, so memory is that of one block (Chen et al. 2016, arXiv:1604.06174).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from drawplate.analysis.parts import Part, parts
from drawplate.analysis.rotations import Plan, Turn
from drawplate.analysis.sites import sites
from drawplate.canonical.match import argument, aten, is_call
from drawplate.encoding import Encoding, fake_quantize, fake_quantize_dynamic, minmax_grid
from drawplate.program import Program
from drawplate.rehearsal import without_contents
from drawplate.turning import Matrices, map_name, map_weight, turn_program, turned, turned_weight, weight_turns

Values = dict[fx.Node, Any]
Matrix = Mapping[str, Tensor]


@dataclass(frozen=True)
class Rounding:
    """How linears' weights and inputs are rounded while learning; None: not at all. The head, the maps in front of it
    and the tables are left as they are: they have 8 bits, where rounding hardly shows."""

    weights: Encoding | None
    activations: Encoding | None


class TurnedNetwork:
    """The program turned and rounded, as a differentiable function of the matrices (f32 [count, d, d] by key)."""

    def __init__(self, program: Program, plan: Plan, matrices: Matrices, rounding: Rounding) -> None:
        self._weights = program.weights
        self._turns = weight_turns(plan)
        self._maps = {map_name(m.diagonal.weight): m for m in plan.maps}
        self._rounding = rounding
        turned_graph = turn_program(without_contents(program), plan, matrices, dense=True)
        self._graph = turned_graph.graph
        self._body = {s.name for s in sites(turned_graph) if s.role == "linear" and s.name not in self._maps}
        self._parts = parts(turned_graph)

    def gradients(self, inputs: Sequence[Tensor], matrices: Matrix, loss_of: Any) -> tuple[float, dict[str, Tensor]]:
        """The loss of the program's output, and its gradient in every matrix."""
        leaves = {k: m.detach().requires_grad_() for k, m in matrices.items()}
        total = {k: torch.zeros_like(m) for k, m in leaves.items()}
        values: Values = {}
        feed = (n for n in self._graph.nodes if n.op == "placeholder")
        values.update(zip(feed, inputs, strict=True))
        *before, last = self._parts
        for part in before:
            with torch.no_grad():
                values.update(self._run(part, values, leaves))
        held = _leaves(last, values)
        with torch.enable_grad():
            output = self._run(last, {**values, **held}, leaves)[last.gives[0]]
            loss = loss_of(output)
        above = _add_gradients(loss, None, held, leaves, total)
        del output
        for part in reversed(before):
            held = _leaves(part, values)
            with torch.enable_grad():
                made = self._run(part, {**values, **held}, leaves)
            reached = [n for n in part.gives if n in above and made[n].requires_grad]
            if reached:
                outputs, seeds = [made[n] for n in reached], [above.pop(n) for n in reached]
                for node, g in _add_gradients(outputs, seeds, held, leaves, total).items():
                    above[node] = above[node] + g if node in above else g
        return float(loss.detach()), total

    def output(self, inputs: Sequence[Tensor], matrices: Matrix) -> Tensor:
        """The program's output."""
        values: Values = dict(zip((n for n in self._graph.nodes if n.op == "placeholder"), inputs, strict=True))
        with torch.no_grad():
            for part in self._parts:
                values.update(self._run(part, values, matrices))
        return values[self._parts[-1].gives[0]]

    def _run(self, part: Part, given: Values, matrices: Matrix) -> Values:
        """What the part gives."""
        values: Values = {n: given[n] for n in part.needs}
        rounded: dict[fx.Node, Tensor] = {}
        for node in part.nodes:
            if node.op == "get_attr":
                values[node] = None  # read by the operator that wants it
            else:
                values[node] = self._call(node, values, rounded, matrices)
        return {n: values[n] for n in part.gives}

    def _call(self, node: fx.Node, values: Values, rounded: dict[fx.Node, Tensor], matrices: Matrix) -> Any:
        if is_call(node, aten.embedding.default):
            return self._looked_up(node, values, matrices)
        if is_call(node, aten.linear.default):
            weight = str(node.args[1].target)  # type: ignore[union-attr]
            x: Any = node.args[0]
            bias: Any = argument(node, 2, "bias")
            b = None if bias is None else self._read(str(bias.target), matrices)
            if weight in self._body:
                if x not in rounded:
                    rounded[x] = self._rounded(values[x])
                return torch.nn.functional.linear(rounded[x], self._read(weight, matrices), b)
            return self._plain_linear(values[x], weight, b, matrices)
        args, kwargs = fx.node.map_arg(
            (node.args, node.kwargs),
            lambda n: self._read(str(n.target), matrices) if n.op == "get_attr" else values[n],
        )
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _looked_up(self, node: fx.Node, values: Values, matrices: Matrix) -> Tensor:
        """Rows of a table, turned after they were looked up: a text has fewer tokens than the table rows."""
        table, index = str(node.args[0].target), values[node.args[1]]  # type: ignore[union-attr,index]
        rows = torch.nn.functional.embedding(index, self._float(table))
        for how, turn in self._turns.get(table, ()):
            assert isinstance(how, str)
            assert turn.axis == 1
            rows = turned(rows, replace(turn, axis=rows.dim() - 1), matrices[how])
        return rows

    def _plain_linear(self, x: Tensor, weight: str, bias: Tensor | None, matrices: Matrix) -> Tensor:
        """A linear that is not rounded: x (W R)^T = (x R^T) W^T, so its input is turned and not its weight."""
        turns = self._turns.get(weight, ())
        inward = all(isinstance(how, str) and turn.axis == 1 for how, turn in turns)
        if weight in self._maps or not inward:
            return torch.nn.functional.linear(x, self._read(weight, matrices), bias)
        for how, turn in reversed(turns):
            assert isinstance(how, str)
            x = turned(x, Turn(weight, x.dim() - 1, turn.index, turn.of), matrices[how].mT)
        return torch.nn.functional.linear(x, self._float(weight), bias)

    def _read(self, name: str, matrices: Matrix) -> Tensor:
        """A weight of the turned graph, rounded if it is a linear's."""
        if name in self._maps:
            m = self._maps[name]
            ends = [None if key is None else matrices[key][0] for key in (m.before, m.after)]
            return map_weight(self._float(m.diagonal.weight), *ends)
        weight = turned_weight(self._float(name), self._turns.get(name, ()), matrices)
        encoding = self._rounding.weights
        # what does not fit stays floating point, as quantize-weights leaves it
        if encoding is None or name not in self._body or not encoding.fits(weight.shape):
            return weight
        return fake_quantize(weight, minmax_grid(weight.detach(), encoding), encoding)

    def _float(self, name: str) -> Tensor:
        weight: Any = self._weights[name]
        return weight.float() if weight.is_floating_point() else weight

    def _rounded(self, x: Tensor) -> Tensor:
        encoding = self._rounding.activations
        return x if encoding is None else fake_quantize_dynamic(x, encoding)


def _leaves(part: Part, values: Values) -> Values:
    """What the part reads of others, as the ends of its own graph."""
    return {
        n: values[n].detach().requires_grad_()
        for n in part.needs
        if isinstance(values[n], Tensor) and values[n].is_floating_point()
    }


def _add_gradients(
    outputs: Any, seeds: Any, held: Values, leaves: Matrix, total: dict[str, Tensor]
) -> dict[fx.Node, Tensor]:
    """Adds to the matrices' gradients; returns those of the values that the part reads."""
    wanted = [*held.values(), *leaves.values()]
    found: tuple[Tensor | None, ...] = torch.autograd.grad(outputs, wanted, seeds, allow_unused=True)
    for key, g in zip(leaves, found[len(held) :], strict=True):
        if g is not None:
            total[key] += g
    return {node: g for node, g in zip(held, found, strict=False) if g is not None}
