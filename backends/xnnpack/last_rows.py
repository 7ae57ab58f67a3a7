"""take-last-row: only the last position runs through what follows the last attention."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from drawplate.backends.xnnpack.kinds import BINARY, MAX, NORMS, UNARY
from drawplate.backends.xnnpack.rules import is_fixed
from drawplate.canonical.match import argument, aten, rank, same_length, value
from drawplate.facts import INTERFACE, NUMBERS
from drawplate.invariants import SAME_FUNCTION, SIGNATURE
from drawplate.passbase import Env, Pass
from drawplate.program import Program

ours = torch.ops.drawplate
LAST = ours.last_position.default
RESHAPES = (aten.reshape.default, aten.view.default, aten.flatten.using_ints, aten.unflatten.int)
CASTS = (aten.to.dtype, operator.getitem)
PIECES = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)
CUTS = (aten.slice.Tensor, aten.cat.default, *PIECES)


@dataclass(frozen=True)
class TakeLastRow(Pass):
    """Move `drawplate.last_position` up past everything that treats each position by itself: the last layer's output
    linear and MLP then see one row of a prompt, as the head does. It stops at attention, and at values that someone
    else needs whole.
    """

    name: ClassVar = "take-last-row"
    preserves: ClassVar = NUMBERS | INTERFACE
    keeps: ClassVar = (SIGNATURE, SAME_FUNCTION)

    def run(self, program: Program, env: Env) -> Program:
        axes = one_row(program)
        if not axes:
            return program
        editor = program.edit()
        taken: dict[tuple[fx.Node, int], fx.Node] = {}

        def row(x: fx.Node, axis: int) -> fx.Node:
            """x[.., -1:, ..] of a value that stays whole."""
            if (x, axis) not in taken:
                copy = editor.of(x)
                with editor.graph.inserting_after(copy):
                    args = (copy,) if axis == 1 else (copy, axis, -1, MAX)
                    taken[x, axis] = editor.call(LAST if axis == 1 else aten.slice.Tensor, *args, like=x)
            return taken[x, axis]

        for node, axis in axes.items():
            copy = editor.of(node)
            if node.target is LAST:
                x: Any = node.args[0]
                editor.replace(copy, editor.of(x) if x in axes else row(x, 1))
                continue
            wanted = {x: _above(node, x, axis) for x in node.all_input_nodes}
            inputs = {editor.of(x): row(x, above) for x, above in wanted.items() if above is not None and x not in axes}
            copy.args = fx.node.map_arg(copy.args, _renamed(inputs))
            if node.target in RESHAPES[:2]:
                shape: Any = list(copy.args[1])  # type: ignore[arg-type]
                shape[axis] = 1
                copy.args = (copy.args[0], shape)
        return editor.finish()


def _renamed(names: dict[fx.Node, fx.Node]) -> Callable[[fx.Node], fx.Node]:
    return lambda n: names.get(n, n)


def one_row(program: Program) -> dict[fx.Node, int]:
    """Nodes of which only the last element of one axis is ever used -> that axis, in order; empty if it is but the
    last_position itself."""
    axes: dict[fx.Node, int] = dict.fromkeys(program.nodes(LAST), 1)
    found = dict(axes)
    for node in reversed(list(program.nodes())):
        if node in found or not node.users:
            continue
        wanted = {_wanted(user, node, found) for user in node.users}
        axis = wanted.pop() if len(wanted) == 1 else None
        if axis is not None and _passes(node, axis):
            found[node] = axis
    return {n: found[n] for n in program.nodes() if n in found} if len(found) > len(axes) else {}


def _wanted(user: fx.Node, node: fx.Node, found: dict[fx.Node, int]) -> int | None:
    """The axis of `node` of which this reader needs the last element only; None if it needs more."""
    if user.target is LAST:
        return 1
    return _above(user, node, found[user]) if user in found else None


def _passes(node: fx.Node, axis: int) -> bool:
    """May the last element be taken from this node's inputs instead?"""
    shape, target = _shape(node), node.target
    axes = len(shape)
    if is_fixed(shape[axis]):
        return False
    if target in (*NORMS, aten.linear.default, ours.encode.default, ours.hadamard.default):
        return axis < axes - 1
    if target in RESHAPES:
        return _split(node, axis) is not None
    return target in (*UNARY, *BINARY, *CASTS, aten.transpose.int, aten.unsqueeze.default) or (
        target in CUTS and _dim(node) != axis
    )


def _shape(node: fx.Node) -> Any:
    """The shape of a value; of the first piece, where there are several."""
    found: Any = value(node)
    return (found[0] if isinstance(found, list | tuple) else found).shape


def _dim(node: fx.Node) -> int:
    pieces = node.target in PIECES
    return int(argument(node, 2 if pieces else 1, "dim", 0)) % len(_shape(node))


def _above(node: fx.Node, x: fx.Node, axis: int) -> int | None:
    """Where the axis of a node lies in one of its inputs; None if this input does not have it, or has it once."""
    shape = _shape(x) if isinstance(x.meta["val"], torch.Tensor | list | tuple) else ()
    if x.op == "get_attr":
        return None
    if node.target is aten.transpose.int:
        a, b = (int(i) % rank(node) for i in node.args[1:3])  # type: ignore[arg-type]
        return {a: b, b: a}.get(axis, axis)
    if node.target is aten.unsqueeze.default:
        new = int(node.args[1]) % rank(node)  # type: ignore[arg-type]
        return None if axis == new else axis - (axis > new)
    if node.target in RESHAPES:
        return _split(node, axis) if x is node.args[0] else None
    above = axis - (len(_shape(node)) - len(shape))
    return above if above >= 0 and not is_fixed(shape[above]) else None


def _split(node: fx.Node, axis: int) -> int | None:
    """The axis of a reshape's input that is this axis of its result, with the same axes in front of it."""
    x, y = value(node.args[0]), value(node)  # type: ignore[arg-type]
    fits = axis < x.dim() and all(
        same_length(a, b) for a, b in zip(x.shape[: axis + 1], y.shape[: axis + 1], strict=True)
    )
    return axis if fits else None
