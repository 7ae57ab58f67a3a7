"""Hidden axes: channels that linears write, pointwise functions pass on one by one, and linears read.

Their order means nothing. A permutation of the rows that write them and of the columns that read them leaves the
function as it is, and goes through what a rotation does not: any function of one channel at a time, such as a gate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from drawplate.analysis.bases import Barrier
from drawplate.analysis.channels import VIEWS, Stop, channels, own_weights
from drawplate.canonical.match import CASTS, aten, expression, is_call, operator_word, width
from drawplate.program import Program

_LINEAR = aten.linear.default
_SUMS = (aten.add.Tensor, aten.sub.Tensor, aten.neg.default)


@dataclass(frozen=True)
class Writer:
    """What writes an axis: `value` [.., n] is rows `rows` int [n] of what `linear` gives, all of it or a part."""

    linear: fx.Node
    value: fx.Node
    rows: Tensor = field(compare=False)


@dataclass(frozen=True)
class HiddenAxis:
    """`width` channels between linears. between: the pointwise nodes in the order of the graph. readers: linears."""

    width: int
    writers: tuple[Writer, ...]
    between: tuple[fx.Node, ...]
    readers: tuple[fx.Node, ...]

    @property
    def name(self) -> str:
        """The weight that writes it first."""
        return weight_name(self.writers[0].linear)


def weight_name(linear: fx.Node) -> str:
    """Of the matrix."""
    return str(linear.all_input_nodes[1].target)


def hidden_axes(program: Program) -> Iterator[HiddenAxis | Barrier]:
    """Every hidden axis in the order of its readers; or, where a pointwise function stands between linears, why its
    channels are none."""
    seen: set[fx.Node] = set()
    for reader in program.nodes(_LINEAR):
        start = reader.all_input_nodes[0]
        if start in seen:
            continue
        flood = _Flood(program, start)
        seen |= flood.members.keys()
        if not flood.begins or not any(_bends(n) for n in flood.members):
            continue  # a stream, or what a norm gives: no axis of a branch
        yield flood.barriers[0] if flood.barriers else flood.axis()


def bands(program: Program) -> dict[fx.Node, int]:
    """For linears that read one value and write several hidden axes, or parts that are put together again, which of
    them: bands of a weight that was cut, or experts. Those of one number are used together; others need not be alike.
    """
    found: dict[fx.Node, list[list[fx.Node]]] = {}
    for axis in hidden_axes(program):
        if isinstance(axis, HiddenAxis):
            _note(found, [w.linear for w in axis.writers])
    for node in program.nodes(aten.cat.default):
        parts: Any = node.args[0]
        linears = [_origin(part) for part in parts]
        if len(set(linears)) == len(linears) and _one_value(linears):
            for linear in linears:
                _note(found, [linear])
    return {
        linear: i for sets in found.values() if len(sets) > 1 for i, linears in enumerate(sets) for linear in linears
    }


def _note(found: dict[fx.Node, list[list[fx.Node]]], linears: list[fx.Node]) -> None:
    """Linears that are used together, by the value that they read."""
    for linear in linears:
        sets = found.setdefault(linear.all_input_nodes[0], [])
        if linears not in sets:
            sets.append(linears)


def _one_value(nodes: list[fx.Node]) -> bool:
    """Are they linears of one value?"""
    return all(is_call(n, _LINEAR) for n in nodes) and len({n.args[0] for n in nodes}) == 1


def _origin(value: fx.Node) -> fx.Node:
    """What views were made of."""
    node: Any = value
    while is_call(node, *VIEWS):
        node = node.args[0]
    found: fx.Node = node
    return found


class _Flood:
    """All values that share their channels with one of them, and what stands in the way."""

    def __init__(self, program: Program, start: fx.Node) -> None:
        self.program = program
        self.width = width(start)
        self.members: dict[fx.Node, None] = {}
        self.writers: dict[fx.Node, Writer] = {}
        self.readers: dict[fx.Node, None] = {}
        self.barriers: list[Barrier] = []
        self.begins = False
        queue = [start]
        while queue:
            node = queue.pop(0)
            if node in self.members:
                continue
            self.members[node] = None
            try:
                queue += self._above(node)
                queue += self._below(node)
            except Stop as stop:
                self.barriers.append(stop.barrier)
        if not self.barriers:
            self._whole()

    def axis(self) -> HiddenAxis:
        """What was found, if there is no barrier."""
        order = [n for n in self.program.graph.nodes if n in self.members]
        writers = tuple(self.writers[n] for n in order if n in self.writers)
        between = tuple(n for n in order if n not in self.writers)
        readers = tuple(n for n in self.program.nodes(_LINEAR) if n in self.readers)
        return HiddenAxis(self.width or 0, writers, between, readers)

    def _above(self, node: fx.Node) -> list[fx.Node]:
        """The values that its channels come from; a linear, or a part of one, is where they begin."""
        if is_call(node, _LINEAR, *VIEWS):
            self.begins = True
            self.writers[node] = self._writer(node)
            return []
        if not _pointwise(node):
            raise Stop(node, f"channels come from '{operator_word(node)}'")
        sources = [n for n in node.all_input_nodes if n.op != "get_attr" and self._per_channel(n, node)]
        for weight in (n for n in node.all_input_nodes if n.op == "get_attr"):
            self._per_channel(weight, node)
        return sources

    def _per_channel(self, operand: fx.Node, node: fx.Node) -> bool:
        """Does the operand have an element for each channel? Raises Stop if it has neither that nor one for all."""
        value = operand.meta["val"]
        if operand.op == "get_attr" and str(operand.target) not in self.program.weights:
            raise Stop(node, f"{operand.target} is a state, and changes")
        if not isinstance(value, Tensor) or value.dim() == 0 or width(operand) == 1 != self.width:
            return False
        if width(operand) != self.width:
            raise Stop(node, f"channels of another number meet in '{operator_word(node)}'")
        return True

    def _below(self, node: fx.Node) -> list[fx.Node]:
        """The values that have its channels one by one."""
        found = []
        for user in node.users:
            if is_call(user, _LINEAR):
                if any(a is node for a in user.all_input_nodes[1:]):
                    raise Stop(user, "a weight is computed from it")
                own_weights(self.program, user)
                self.readers[user] = None
            elif _pointwise(user) and width(user) == self.width:
                found.append(user)
            else:
                word = "the output" if user.op == "output" else f"'{operator_word(user)}'"
                raise Stop(node if user.op == "output" else user, f"channels are read by {word}")
        return found

    def _writer(self, value: fx.Node) -> Writer:
        root = _origin(value)
        if not is_call(root, _LINEAR):
            raise Stop(value, f"channels come from '{operator_word(root)}'")
        own_weights(self.program, root)
        rows = dict(channels(root)).get(value)
        same = list(map(expression, root.meta["val"].shape[:-1])) == list(map(expression, value.meta["val"].shape[:-1]))
        if rows is None or not same:
            raise Stop(value, "it is more than a part of what a linear gives")
        return Writer(root, value, rows.flatten())

    def _whole(self) -> None:
        """Every row of what writes the axis belongs to it, once."""
        taken: dict[fx.Node, list[int]] = {}
        for writer in self.writers.values():
            taken.setdefault(writer.linear, []).extend(writer.rows.tolist())
        for linear, rows in taken.items():
            if sorted(rows) != list(range(width(linear) or 0)):
                self.barriers.append(Barrier(linear, f"rows of {weight_name(linear)} are read elsewhere too"))


def _pointwise(node: fx.Node) -> bool:
    """Is each element of its result a function of those at the same place?"""
    return torch.Tag.pointwise in getattr(node.target, "tags", ()) or is_call(node, *CASTS)


def _bends(node: fx.Node) -> bool:
    """Is it pointwise and more than a sum or a cast?"""
    return _pointwise(node) and not is_call(node, *_SUMS, *CASTS)
