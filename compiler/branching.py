"""One run of a program from which others set off with some weights exchanged: what a single weight does is then
computed without running again what stands before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from drawplate.encoding import as_read
from drawplate.probing import last_readers
from drawplate.program import Program, Weight

Values = dict[fx.Node, list[Any]]


class Trunk:
    """A program without state on some inputs, run as far as is asked. Values that nobody reads any more are let go, and
    a weight is dequantised for each operator that reads it, so the memory is that of a plain run.

    What branches off sees the same values up to there, and has `weights` in place of its own from there on.
    """

    def __init__(self, program: Program, inputs: Sequence[Sequence[Tensor]]) -> None:
        self._program = program
        self._nodes = list(program.graph.nodes)
        self._last = last_readers(program.graph)
        placeholders = [n for n in self._nodes if n.op == "placeholder"]
        self._values: Values = {n: [piece[i] for piece in inputs] for i, n in enumerate(placeholders)}
        self._count = len(inputs)
        self._at = 0

    def run_to(self, node: fx.Node) -> None:
        """Go on to where this operator is the next one."""
        while self._nodes[self._at] is not node:
            self._run(self._nodes[self._at], self._values, {})
            self._at += 1

    def value(self, weights: Mapping[str, Weight]) -> list[Any]:
        """What the next operator gives for each input, with these weights; the run stays where it is."""
        return self._call(self._nodes[self._at], self._values, weights)

    def outputs(self, weights: Mapping[str, Weight]) -> list[Tensor]:
        """The program's first output for each input, with these weights from here on; the run stays where it is."""
        values = dict(self._values)
        for node in self._nodes[self._at :]:
            if node.op == "output":
                return values[node.all_input_nodes[0]]
            self._run(node, values, weights)
        raise AssertionError("a graph ends with its output")

    def _run(self, node: fx.Node, values: Values, weights: Mapping[str, Weight]) -> None:
        if node.op == "call_function":
            values[node] = self._call(node, values, weights)
        for done in self._last.get(node, ()):
            values.pop(done, None)

    def _call(self, node: fx.Node, values: Values, weights: Mapping[str, Weight]) -> list[Any]:
        read = {n: self._weight(str(n.target), weights) for n in node.all_input_nodes if n.op == "get_attr"}
        made = []
        with torch.no_grad():
            for i in range(self._count):
                chosen = {n: values[n][i] for n in node.all_input_nodes if n not in read} | read
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), chosen.__getitem__)
                made.append(node.target(*args, **kwargs))  # type: ignore[operator]
        return made

    def _weight(self, name: str, weights: Mapping[str, Weight]) -> Tensor:
        return as_read(weights.get(name, self._program.weights[name]))
