"""What a rule is: an operator of the Program -> when XNNPACK has it, and how it is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from drawplate.backends.xnnpack.serialise import Value, XnnGraph
from drawplate.canonical.match import argument, value
from drawplate.encoding import QTensor
from drawplate.program import Weight

AXES = 6
"""XNN_MAX_TENSOR_DIMS."""

Weights = Mapping[str, Weight]


@dataclass
class Writer:
    """One region being written. values: what has been written, by node."""

    graph: XnnGraph
    weights: Weights
    values: dict[fx.Node, Value] = field(default_factory=dict)

    def value(self, x: Any) -> Value:
        """The value of an operand: a node of the region, one of its inputs, a float weight, or a number."""
        if not isinstance(x, fx.Node):
            return self.graph.number(float(x))
        if x not in self.values:
            assert x.op == "get_attr"
            weight = self.weights[str(x.target)]
            assert isinstance(weight, Tensor)
            name = str(x.target)
            self.values[x] = self.graph.constant(name, weight if weight.dim() else weight.reshape(1))
        return self.values[x]


@dataclass(frozen=True)
class Rule:
    """why_not: the reason why XNNPACK cannot run this node, or None. write: add it to the graph and give its value."""

    why_not: Callable[[fx.Node, Weights], str | None]
    write: Callable[[Writer, fx.Node], Value]


def is_fixed(length: Any) -> bool:
    """Is this length a number (torch's types call every length one)?"""
    return isinstance(length, int)


def lengths(node: fx.Node) -> tuple[int, ...]:
    """The shape of a value, with 1 for a length that varies."""
    return tuple(n if is_fixed(n) else 1 for n in value(node).shape)


def varies(node: fx.Node) -> tuple[bool, ...]:
    """Which axes do not have a fixed length."""
    return tuple(not is_fixed(n) for n in value(node).shape)


def axis_of(node: fx.Node, index: int, name: str = "dim", default: int = 0) -> int:
    """An axis argument of a node, counted from the front of its first operand."""
    axes = value(node.args[0]).dim()  # type: ignore[arg-type]
    return int(argument(node, index, name, default)) % axes


def only_float32(node: fx.Node, weights: Weights) -> str | None:
    """The reason why not, where a value or an operand is not float32, has too many axes, or is stored as integers."""
    for x in (node, *node.all_input_nodes):
        v = x.meta.get("val")
        if not isinstance(v, Tensor):
            continue
        if v.dtype != torch.float32:
            return f"its type is {str(v.dtype).removeprefix('torch.')}; XNNPACK is given float32"
        if v.dim() > AXES or (v.dim() == 0 and x.op != "get_attr"):
            return f"it has {v.dim()} axes; XNNPACK takes 1 to {AXES}"
        if x.op == "get_attr" and isinstance(weights.get(str(x.target)), QTensor):
            return f"'{x.target}' is stored as integers, which only linear and embedding read"
    return None


def all_of(*checks: Callable[[fx.Node, Weights], str | None]) -> Callable[[fx.Node, Weights], str | None]:
    """The first reason that one of the checks gives."""

    def why_not(node: fx.Node, weights: Weights) -> str | None:
        return next((reason for check in checks if (reason := check(node, weights))), None)

    return why_not
