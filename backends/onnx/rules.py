"""What a rule for an operator is, and what its writer may ask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from drawplate.backends.onnx.graph import Name, OnnxGraph
from drawplate.backends.onnx.target import Form
from drawplate.canonical.match import value
from drawplate.program import Program


@dataclass
class Writer:
    """One program on its way into a graph.

    values: what has been written: a name, or several for an operator with several results. rows: attention's results
    as [1, s, heads * d], before they are turned to [1, heads, s, d]. halves: angles once each. lengths: what attention
    over a cache is told of lengths.
    """

    program: Program
    graph: OnnxGraph
    form: Form
    accuracy_level: int
    values: dict[fx.Node, Any] = field(default_factory=dict)
    rows: dict[fx.Node, Name] = field(default_factory=dict)
    halves: dict[tuple[fx.Node, bool], Name] = field(default_factory=dict)
    lengths: dict[str, Name] = field(default_factory=dict)

    def value(self, x: Any) -> Name:
        """The name of a value that has been written."""
        name: Name = self.values[x]
        return name

    def cast(self, x: Any, dtype: torch.dtype) -> Name:
        """A value or a plain number, in this type."""
        if not isinstance(x, fx.Node):
            return self.graph.constant(torch.tensor(x, dtype=dtype))
        name, found = self.value(x), x.meta["val"]
        have = found.dtype if isinstance(found, Tensor) else torch.int64
        return name if have == dtype else self.graph.cast(name, dtype)

    def shape(self, lengths: Any) -> Name:
        """A shape with numbers, -1 and lengths that are only known as the model runs, as a value: int64 [axes]."""
        varying = [n for n in lengths if isinstance(n, fx.Node)]
        if len(varying) <= 1 and -1 not in lengths:
            return self.graph.integers(*(-1 if isinstance(n, fx.Node) else int(n) for n in lengths))
        return self.sizes(lengths) if varying else self.graph.integers(*lengths)

    def sizes(self, lengths: Any) -> Name:
        """Lengths one by one, as a value: int64 [axes]."""
        return self.graph.node("Concat", *map(self.length, lengths), axis=0)

    def length(self, n: Any) -> Name:
        """One length as int64 [1]."""
        return self.value(n) if isinstance(n, fx.Node) else self.graph.integers(int(n))


Write = Callable[[Writer, fx.Node], Any]


@dataclass(frozen=True)
class Rule:
    """write: puts the operator into the graph and returns the name (or names) of its result. why_not: the reason why
    this call of it cannot be written."""

    write: Write
    why_not: Callable[[fx.Node], str | None] = lambda node: None


Rules = Mapping[Any, Rule]


def dtype(node: fx.Node) -> torch.dtype:
    """Of a value; int64 for a length."""
    found = node.meta["val"]
    return found.dtype if isinstance(found, Tensor) else torch.int64


def axis_of(node: fx.Node, axis: Any) -> int:
    """An axis counted from the front."""
    return int(axis) % max(1, value(node).dim())
