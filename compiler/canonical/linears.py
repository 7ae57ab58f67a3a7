"""Every product of activations with a weight matrix is aten.linear(x, w [out, in], bias)."""

from __future__ import annotations

from typing import Any

from torch import fx

from drawplate.canonical.match import aten, first, is_call, number, rank, same_length, value
from drawplate.program import Editor


def linears(editor: Editor) -> None:
    """addmm, mm and matmul with a weight -> linear of the transposed weight; then no flattening around it."""
    for node in editor.nodes(aten.addmm.default, aten.mm.default, aten.matmul.default):
        found = match_product(node)
        if found is not None:
            x, weight, bias = found
            turned = match_transposed(weight)
            with editor.graph.inserting_before(node):
                if turned is None:
                    turned = editor.call(aten.t.default, weight, like=node)
                    turned.meta["val"] = value(weight).t()
                new = editor.call(aten.linear.default, x, turned, *([bias] if bias else []), like=node)
            new.meta["val"] = value(node)
            editor.replace(node, new)
    for node in editor.nodes(aten.reshape.default):
        flattened = match_flattened(node)
        if flattened is not None:
            linear, x = flattened
            with editor.graph.inserting_before(node):
                new = editor.call(aten.linear.default, x, *linear.args[1:], like=linear)
            new.meta["val"] = value(node)
            editor.replace(node, new)


def match_product(node: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node | None] | None:
    """x @ w (+ b), w: [in, out] a weight -> (x, w, b)."""
    if is_call(node, aten.addmm.default):
        bias, x, weight = node.args[:3]
        if any(number(factor) != 1 for factor in node.kwargs.values()) or not _is_weight(bias, 1):
            return None
    else:
        (x, weight), bias = node.args[:2], None
    if not isinstance(x, fx.Node) or x.op == "get_attr" or not _is_weight(weight, 2):
        return None
    return x, weight, bias  # type: ignore[return-value]


def match_transposed(node: fx.Node) -> fx.Node | None:
    """t(w) of a weight -> w."""
    turns = (aten.t.default, aten.numpy_T.default, aten.transpose.int, aten.permute.default)
    return first(node) if is_call(node, *turns) and rank(node) == 2 else None


def match_flattened(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """reshape(linear(reshape(x, [-1, n])), [*x.shape[:-1], m]) -> (linear, x)."""
    linear = first(node)
    if not is_call(linear, aten.linear.default) or len(linear.users) != 1:
        return None
    flat = first(linear)
    if not is_call(flat, aten.reshape.default) or rank(flat) != 2:
        return None
    x = first(flat)
    kept = rank(node) == rank(x) and all(map(same_length, value(node).shape[:-1], value(x).shape[:-1]))
    whole = same_length(value(node).shape[-1], value(linear).shape[-1])
    return (linear, x) if kept and whole and same_length(value(flat).shape[-1], value(x).shape[-1]) else None


def _is_weight(node: Any, axes: int) -> bool:
    """A weight of so many axes, or the transpose of one."""
    if not isinstance(node, fx.Node) or "val" not in node.meta or rank(node) != axes:
        return False
    matrix = match_transposed(node) if axes == 2 else None
    return (node if matrix is None else matrix).op == "get_attr"
