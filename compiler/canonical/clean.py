"""Drops what does nothing: asserts, casts to the same type, detach, alias, contiguous, dropout, + 0, full slices."""

from __future__ import annotations

import torch
from torch import fx

from drawplate.canonical.functional import any_writes
from drawplate.canonical.match import CASTS, argument, aten, is_call, same_shape, value
from drawplate.program import Editor

ASSERTS = (
    aten._assert_tensor_metadata.default,  # noqa: SLF001
    aten._assert_async.msg,  # noqa: SLF001
    aten._assert_scalar.default,  # noqa: SLF001
    aten.sym_constrain_range_for_size.default,
)
COPIES = (
    aten.alias.default,
    aten.detach.default,
    aten.detach_.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.lift_fresh_copy.default,
    aten.dropout.default,
    aten.feature_dropout.default,
)
RESHAPES = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)  # noqa: SLF001
# What tracing writes out though it is what happens anyway.
_DEFAULTS = (("device", torch.device("cpu")), ("pin_memory", False), ("layout", torch.strided))


def clean(editor: Editor) -> None:
    """Every value that equals its input is its input; a view becomes a reshape, which asks nothing of the layout."""
    copies_matter = any_writes(editor)
    for node in editor.nodes():
        if node.target in ASSERTS:
            editor.graph.erase_node(node)
        elif does_nothing(node) and not copies_matter:
            editor.replace(node, node.args[0])  # type: ignore[arg-type]
        elif is_call(node, *RESHAPES):
            as_reshape(node)
        elif is_call(node, *CASTS):
            as_plain_cast(node)
        else:
            node.kwargs = {k: v for k, v in node.kwargs.items() if (k, v) not in _DEFAULTS}


def does_nothing(node: fx.Node) -> bool:
    """Is the value equal to its first argument, for every input?"""
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    source = node.args[0]
    if node.target in (aten.dropout.default, aten.feature_dropout.default):
        return not argument(node, 2, "train") or not argument(node, 1, "p")
    if node.target in COPIES:
        return True
    if node.target in CASTS:
        return value(node).dtype == value(source).dtype
    if is_call(node, *RESHAPES, aten.expand.default):
        return same_shape(node, source)
    if is_call(node, aten.slice.Tensor):
        return argument(node, 4, "step", 1) == 1 and same_shape(node, source)
    if is_call(node, aten.add.Tensor, aten.sub.Tensor):
        return _is(node.args[1], 0) and _same_type(node, source)
    if is_call(node, aten.mul.Tensor, aten.div.Tensor, aten.pow.Tensor_Scalar):
        return _is(node.args[1], 1) and _same_type(node, source)
    return False


def as_reshape(node: fx.Node) -> None:
    """aten.reshape(x, sizes), a -1 written as the number that it stands for if that is fixed."""
    lengths = value(node).shape
    sizes = [n if s == -1 and isinstance(n, int) else s for s, n in zip(node.args[1], lengths, strict=True)]  # type: ignore[arg-type]
    node.args, node.target = (node.args[0], sizes), aten.reshape.default


def as_plain_cast(node: fx.Node) -> None:
    """One spelling for a cast that does something: aten.to.dtype(x, dtype)."""
    node.args, node.kwargs, node.target = (node.args[0], value(node).dtype), {}, aten.to.dtype


def _is(operand: object, number: int) -> bool:
    return isinstance(operand, (int, float)) and not isinstance(operand, bool) and operand == number


def _same_type(node: fx.Node, source: fx.Node) -> bool:
    return value(node).dtype == value(source).dtype and same_shape(node, source)
