"""A turned program as a function of its rotations, rounded as the target would, with gradients block by block.

The graph is the turned one; its weights are computed from the program's and the matrices where they are read, and let
go; partwise.py keeps the memory to that of one block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from drawplate.analysis.parts import Part, parts
from drawplate.analysis.rotations import Plan, Turn
from drawplate.analysis.sites import sites
from drawplate.canonical.match import argument, aten, is_call
from drawplate.encoding import Encoding, fake_quantize, fake_quantize_dynamic, minmax_grid
from drawplate.partwise import Values, back_through, forward, leaves
from drawplate.program import Program
from drawplate.rehearsal import without_contents
from drawplate.turning import Matrices, map_name, map_weight, turn_program, turned, turned_weight, weight_turns

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
        wanted = {k: m.detach().requires_grad_() for k, m in matrices.items()}

        def run(part: Part, values: Values) -> Values:
            return self._run(part, values, wanted)

        *before, last = self._parts
        values = forward(before, run, self._graph, inputs)
        held = leaves(last, values)
        with torch.enable_grad():
            loss = loss_of(run(last, {**values, **held})[last.gives[0]])
        loss.backward()
        back_through(before, run, values, {n: leaf.grad for n, leaf in held.items() if leaf.grad is not None})
        return float(loss.detach()), {k: torch.zeros_like(m) if m.grad is None else m.grad for k, m in wanted.items()}

    def output(self, inputs: Sequence[Tensor], matrices: Matrix) -> Tensor:
        """The program's output."""
        run = partial(self._run, matrices=matrices)
        return forward(self._parts, run, self._graph, inputs)[self._parts[-1].gives[0]]

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
