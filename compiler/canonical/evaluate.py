"""Runs a part of a program on concrete inputs, to see what it does."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from drawplate.canonical.match import aten, same_length, value
from drawplate.encoding import as_read
from drawplate.program import Editor


def ancestors(node: fx.Node) -> set[fx.Node]:
    """The node and all that it is computed from."""
    found, todo = {node}, [node]
    while todo:
        new = [n for n in todo.pop().all_input_nodes if n not in found]
        found.update(new)
        todo += new
    return found


def value_inputs(nodes: set[fx.Node]) -> list[fx.Node]:
    """The inputs whose values these nodes use; those of which they only use a length do not count."""
    return [
        n
        for n in nodes
        if n.op == "placeholder" and any(u.target is not aten.sym_size.int for u in n.users if u in nodes)
    ]


def dim_of(editor: Editor, length: Any) -> str | None:
    """The name of the dim that a symbolic length is."""
    placeholders = (n for n in editor.graph.nodes if n.op == "placeholder")
    for node, spec in zip(placeholders, editor.inputs, strict=True):
        for here, name in zip(value(node).shape, spec.shape, strict=True):
            if isinstance(name, str) and same_length(here, length):
                return name
    return None


class Evaluator:
    """Runs the sub-graph that computes one value."""

    def __init__(self, editor: Editor, result: fx.Node, nodes: set[fx.Node]) -> None:
        self._result = result
        self._order = [n for n in editor.graph.nodes if n in nodes]
        self._weights = editor.weights
        self._specs = {spec.name: spec for spec in editor.inputs}

    def __call__(
        self,
        inputs: Mapping[fx.Node, Tensor],
        lengths: Mapping[str, int],
        constants: Mapping[int, int] = MappingProxyType({}),
    ) -> Tensor | None:
        """The value, or None if it cannot be computed. lengths: of each dim. constants: integers to replace."""
        try:
            return self._run(inputs, lengths, constants)
        except (RuntimeError, IndexError):
            return None

    def shape(self, node: fx.Node, lengths: Mapping[str, int]) -> list[int]:
        """The shape of an input when the dims have these lengths."""
        return [lengths[n] if isinstance(n, str) else n for n in self._specs[str(node.target)].shape]

    def _run(
        self, inputs: Mapping[fx.Node, Tensor], lengths: Mapping[str, int], constants: Mapping[int, int]
    ) -> Tensor:
        values: dict[fx.Node, Any] = {}
        for node in self._order:
            if node.op == "placeholder":
                known = inputs.get(node)
                # of an input that is not given, only lengths are read
                values[node] = torch.empty(self.shape(node, lengths), device="meta") if known is None else known
            elif node.op == "get_attr":
                values[node] = as_read(self._weights[str(node.target)])
            else:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
                if constants:
                    args = tuple(constants.get(a, a) if type(a) is int else a for a in args)
                values[node] = node.target(*args, **kwargs)
        return values[self._result]

    def large_constants(self, above: int) -> set[int]:
        """Magnitudes of the integers in the sub-graph's calls that lie beyond `above`; slice ends do not count."""
        found = {abs(a) for n in self._order for a in n.args if type(a) is int}
        return {a for a in found if above <= a < 1 << 62}


def allowed(mask: Tensor) -> Tensor | None:
    """bool mask, or additive mask of 0 and very negative numbers -> bool; None for anything else."""
    if mask.dtype == torch.bool:
        return mask
    if not mask.is_floating_point():
        return None
    open_, shut = mask == 0, mask <= torch.finfo(mask.dtype).min / 2
    return open_ if bool((open_ | shut).all()) else None
