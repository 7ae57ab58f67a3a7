"""Operators that move elements and compute nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from drawplate.backends.xnnpack.kinds import MAX
from drawplate.backends.xnnpack.rules import (
    Rule,
    Weights,
    Writer,
    all_of,
    axis_of,
    is_fixed,
    lengths,
    only_float32,
    varies,
)
from drawplate.backends.xnnpack.serialise import Value
from drawplate.canonical.match import argument, aten, value


def reshape(w: Writer, node: fx.Node) -> Value:
    """Any operator that only says how the same elements are cut into axes."""
    return w.graph.reshape(w.value(node.args[0]), lengths(node), varies(node))


def _one_varies(node: fx.Node, _: Weights) -> str | None:
    if sum(varies(node)) > 1:
        return "two of its lengths vary; XNNPACK can work out one"
    return None


def transpose(w: Writer, node: fx.Node) -> Value:
    """Two axes swapped."""
    order = list(range(value(node).dim()))
    a, b = axis_of(node, 1, "dim0"), axis_of(node, 2, "dim1")
    order[a], order[b] = order[b], order[a]
    return w.graph.transpose(w.value(node.args[0]), order)


def permute(w: Writer, node: fx.Node) -> Value:
    """Axes in any order."""
    axes: Any = node.args[1]
    order = [int(axis) % len(lengths(node)) for axis in axes]
    return w.graph.transpose(w.value(node.args[0]), order)


def _bounds(node: fx.Node) -> tuple[int, int] | None:
    """First and last-plus-one element of a slice along an axis of fixed length; None if they cannot be known."""
    n = value(node.args[0]).shape[axis_of(node, 1)]  # type: ignore[arg-type]
    start, end = argument(node, 2, "start"), argument(node, 3, "end")
    start, end = 0 if start is None else start, MAX if end is None else end
    if not is_fixed(n) or not isinstance(start, int) or not isinstance(end, int):
        return None
    first, last, _ = slice(start, end).indices(n)
    return first, last


def _fixed_slice(node: fx.Node, _: Weights) -> str | None:
    if argument(node, 4, "step", 1) != 1:
        return "XNNPACK's slices have no steps"
    bounds = _bounds(node)
    if bounds is None:
        return "where it begins or ends depends on a length that varies; XNNPACK's slices are fixed"
    return None if bounds[0] < bounds[1] else "it is empty"


def slice_(w: Writer, node: fx.Node) -> Value:
    """Some elements of an axis of fixed length."""
    bounds = _bounds(node)
    assert bounds is not None
    return w.graph.slice(w.value(node.args[0]), axis_of(node, 1), bounds[0], bounds[1] - bounds[0])


def _fixed_select(node: fx.Node, _: Weights) -> str | None:
    n = value(node.args[0]).shape[axis_of(node, 1)]  # type: ignore[arg-type]
    if not is_fixed(n) or not isinstance(node.args[2], int):
        return "which element it takes depends on a length that varies"
    return None


def select(w: Writer, node: fx.Node) -> Value:
    """One element of an axis; the axis goes."""
    axis = axis_of(node, 1)
    n = value(node.args[0]).shape[axis]  # type: ignore[arg-type]
    one = w.graph.slice(w.value(node.args[0]), axis, int(node.args[2]) % n, 1)  # type: ignore[arg-type]
    return w.graph.reshape(one, lengths(node), varies(node))


def concatenate(w: Writer, node: fx.Node) -> Value:
    """Values one after the other."""
    axis = int(argument(node, 1, "dim", 0)) % len(lengths(node))
    return w.graph.concatenate([w.value(x) for x in node.args[0]], axis)  # type: ignore[union-attr]


def stack(w: Writer, node: fx.Node) -> Value:
    """Values side by side along a new axis."""
    axis = int(argument(node, 1, "dim", 0)) % len(lengths(node))
    one = tuple(1 if i == axis else n for i, n in enumerate(lengths(node)))
    parts = [w.graph.reshape(w.value(x), one, varies(node)) for x in node.args[0]]  # type: ignore[union-attr]
    return w.graph.concatenate(parts, axis)


def _some(node: fx.Node, _: Weights) -> str | None:
    return None if len(node.args[0]) > 1 else "there is only one value"  # type: ignore[arg-type]


def _rule(write: Callable[[Writer, fx.Node], Value], *checks: Callable[[fx.Node, Weights], str | None]) -> Rule:
    return Rule(all_of(only_float32, *checks), write)


_RESHAPES = (
    aten.reshape.default,
    aten.view.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.flatten.using_ints,
    aten.unflatten.int,
)

SHAPE: dict[Any, Rule] = {
    **{target: _rule(reshape, _one_varies) for target in _RESHAPES},
    aten.transpose.int: _rule(transpose),
    aten.permute.default: _rule(permute),
    aten.slice.Tensor: _rule(slice_, _fixed_slice),
    aten.select.int: _rule(select, _fixed_select, _one_varies),
    aten.cat.default: _rule(concatenate, _some),
    aten.stack.default: _rule(stack, _some, _one_varies),
}
"""None of these is a reason of its own to call the delegate."""
