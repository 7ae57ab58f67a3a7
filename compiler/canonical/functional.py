"""Calls that write their argument -> calls that return a new value."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from drawplate.canonical.match import value
from drawplate.program import Editor


def functional(editor: Editor) -> None:
    """`x /= y` is `div(x, y)`, and whoever reads x afterwards reads that. Writes through views are left as they are."""
    place = {node: i for i, node in enumerate(editor.graph.nodes)}
    for node in editor.nodes():
        pure = match_write(node)
        if pure is None:
            continue
        written: fx.Node = node.args[0]  # type: ignore[assignment]
        node.target = pure
        later = [u for u in written.users if u is not node and place[u] > place[node]]
        for user in later:
            user.replace_input_with(written, node)


def match_write(node: fx.Node) -> OpOverload[Any, Any] | None:
    """The operator that computes what this call writes, if nothing else shares the memory that it writes to."""
    if not writes(node) or not isinstance(node.args[0], fx.Node):
        return None
    target = node.args[0]
    if target.op != "call_function" or aliases(target) or any(aliases(u) for u in target.users if u is not node):
        return None
    name, overload = str(node.target).removeprefix("aten.").split(".")
    pure = getattr(getattr(torch.ops.aten, name.removesuffix("_"), None), overload, None)
    return pure if pure is not None and value(node).dtype == value(target).dtype else None


def writes(node: fx.Node) -> bool:
    """Does the call change one of its arguments?"""
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable  # noqa: SLF001


def any_writes(editor: Editor) -> bool:
    """Is there a call that changes an argument? Then two equal values need not stay equal."""
    return any(map(writes, editor.nodes()))


def aliases(node: fx.Node) -> bool:
    """May the result share memory with an argument?"""
    if node.target is operator.getitem:
        return aliases(node.all_input_nodes[0])
    if not isinstance(node.target, OpOverload):
        return False
    returns = node.target._schema.returns  # noqa: SLF001
    return any(r.alias_info is not None for r in returns) or torch.Tag.maybe_aliasing_or_mutating in node.target.tags
