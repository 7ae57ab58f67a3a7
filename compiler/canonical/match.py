"""Small questions about nodes. Every recognition is written with these; none of them changes anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

CASTS = (
    aten.to.dtype,
    aten.to.device,
    aten.to.dtype_layout,
    aten.to.other,
    aten._to_copy.default,  # noqa: SLF001  (the operator's name)
    aten.type_as.default,
)


def is_call(node: Any, *targets: Callable[..., Any]) -> bool:
    """Is it a call of one of these?"""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def argument(node: fx.Node, index: int, name: str, default: Any = None) -> Any:
    """An argument, whether it was given by position or by name."""
    return node.args[index] if index < len(node.args) else node.kwargs.get(name, default)


def first(node: Any) -> Any:
    """The first argument: what most operations are about."""
    return node.args[0]


def operator_word(node: fx.Node) -> str:
    """The operator's bare name, for messages: `reshape` of aten.reshape.default."""
    return str(getattr(node.target, "__name__", node.target)).partition(".")[0]


def number(value: Any) -> float | None:
    """A plain number, or None."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def operands(node: fx.Node) -> list[tuple[Any, Any]]:
    """The two operands of a commutative call, both ways round."""
    a, b = node.args[0], node.args[1]
    return [(a, b), (b, a)]


def through_casts(node: Any) -> Any:
    """What a value was before it was cast. For patterns that compute in a wider type and go back."""
    while is_call(node, *CASTS):
        node = node.args[0]
    return node


def value(node: fx.Node) -> torch.Tensor:
    """The fake tensor of a node."""
    return node.meta["val"]


def weight_behind(node: Any) -> fx.Node | None:
    """The node that reads a weight, where this is it or a cast of it: a weight may be kept narrower than it is read."""
    found = through_casts(node)
    return found if isinstance(found, fx.Node) and found.op == "get_attr" else None


def rank(node: fx.Node) -> int:
    """The number of axes."""
    return value(node).dim()


def last_axis(node: fx.Node, axis: Any) -> bool:
    """Is it the node's last axis, counted from either end?"""
    return axis in (-1, rank(node) - 1)


def width(node: fx.Node) -> int | None:
    """The length of the last axis, if it is fixed."""
    n = value(node).shape[-1] if rank(node) else None
    return n if isinstance(n, int) else None


def same_shape(a: fx.Node, b: fx.Node) -> bool:
    """Do the two values have the same lengths, symbol for symbol?"""
    x, y = value(a).shape, value(b).shape
    return len(x) == len(y) and all(map(same_length, x, y))


def same_length(a: Any, b: Any) -> bool:
    """Two lengths, numbers or symbols, without asking torch to guess."""
    return bool(expression(a) == expression(b))


def expression(length: Any) -> Any:
    """The sympy expression of a symbolic length, or the number itself."""
    return length.node.expr if isinstance(length, torch.SymInt) else length
