"""Which values of a program must be written in one basis: read off the graph by union-find.

A residual stream is a sum of what many weights write, and many weights read it. Its channels mean nothing by
themselves: any orthogonal change of basis that all writers and all readers make together leaves the function as it is
(computational invariance: Ashkboos et al. 2024, arXiv:2401.15024, sec. 3). So the values that an addition, a view or an
unweighted RMS norm ties together are one Basis, together with the axes of the weights that write and read it. What
mixes channels in any other way is a Barrier, and a basis with a barrier stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from drawplate.analysis.sites import output_values
from drawplate.canonical.match import argument, aten, is_call, number, operator_word, width
from drawplate.program import Program

# What moves or copies whole rows of channels, whatever the axes; the last axis is looked at where it is used.
_VIEWS = (
    aten.reshape.default, aten.transpose.int, aten.permute.default, aten.unsqueeze.default, aten.squeeze.dim,
    aten.expand.default, aten.slice.Tensor, aten.select.int, aten.index.Tensor, aten.cat.default,
    aten.contiguous.default, aten.clone.default, aten.repeat_interleave.self_int,
    torch.ops.drawplate.last_position.default,
)  # fmt: skip
_CASTS = (aten.to.dtype, aten.to.dtype_layout, aten.to.device)
_SUMS = (aten.add.Tensor, aten.sub.Tensor)
_FACTORS = (aten.mul.Tensor, aten.div.Tensor)
_LENGTHS = (aten.sym_size.int, torch.ops.drawplate.window_mask.default)  # these ask a value for its lengths alone


@dataclass(frozen=True)
class Port:
    """One axis of a weight that is written in the basis: rows that write it, columns that read it, a table's width."""

    weight: str
    axis: int


@dataclass(frozen=True)
class Diagonal:
    """A product with one factor per channel, `weight`, from the basis of `node`'s input to that of its output.

    node: the norm that has this weight, or the product itself.
    """

    node: fx.Node
    weight: str


@dataclass(frozen=True)
class Barrier:
    """Why the channels of a basis stay as they are: node, in words, and the model's own line."""

    node: fx.Node
    why: str

    def __str__(self) -> str:
        where = self.node.meta.get("source") or self.node.meta.get("site") or self.node.name
        return f"{self.why} at {where}"


@dataclass(frozen=True)
class Basis:
    """Values with `width` channels that share one basis.

    writers, readers: the axes of the weights that make these values, and of those that multiply with them. entering,
    leaving: per-channel products into and out of it. barriers: why it cannot be rotated; empty if it can.
    """

    width: int
    values: tuple[fx.Node, ...]
    writers: tuple[Port, ...] = ()
    readers: tuple[Port, ...] = ()
    entering: tuple[Diagonal, ...] = ()
    leaving: tuple[Diagonal, ...] = ()
    barriers: tuple[Barrier, ...] = ()

    @property
    def name(self) -> str:
        """The weight that writes it first, or its first value: stable between runs."""
        return self.writers[0].weight if self.writers else self.values[0].name

    @property
    def ports(self) -> tuple[Port, ...]:
        """Every axis that turns with the basis, once each."""
        return tuple(dict.fromkeys((*self.writers, *self.readers)))


def bases(program: Program) -> tuple[Basis, ...]:
    """Every basis of the program, in the order of their first values."""
    found = _Finder(program)
    for node in program.graph.nodes:
        if node.op == "placeholder" and _channels(node):
            found.stop(node, node, "it comes into the program")
        elif node.op == "call_function" and node.target not in _LENGTHS:
            found.visit(node)
    for value in output_values(program):
        if _channels(value):
            found.stop(value, value, "it leaves the program")
    return found.bases()


class _Finder:
    """Union-find over values and axes of weights, with what was seen at each."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.parent: dict[Hashable, Hashable] = {}
        self.seen: dict[str, list[tuple[Hashable, Any]]] = {
            k: [] for k in ("writers", "readers", "entering", "leaving", "barriers")
        }
        rules: dict[tuple[Callable[..., Any], ...], Callable[[fx.Node], None]] = {
            (aten.embedding.default,): self._embedding,
            (aten.linear.default,): self._linear,
            (aten.rms_norm.default,): self._rms_norm,
            _SUMS: self._sum,
            _FACTORS: self._factor,
            (*_VIEWS, *_CASTS, aten.neg.default): self._view,
        }
        self.rules = {target: rule for targets, rule in rules.items() for target in targets}

    def visit(self, node: fx.Node) -> None:
        """Take note of one operator."""
        if any(_channels(n) for n in (node, *node.all_input_nodes)):
            self.rules.get(node.target, self._unknown)(node)  # type: ignore[arg-type]

    def stop(self, value: fx.Node | Port, node: fx.Node, why: str) -> None:
        """The basis of value cannot change, because of node."""
        self._note("barriers", value, Barrier(node, why))

    def bases(self) -> tuple[Basis, ...]:
        """What came together, with all that was noted of it."""
        groups: dict[Hashable, list[fx.Node]] = {}
        for key in self.parent:
            if isinstance(key, fx.Node) and key.op != "get_attr":
                groups.setdefault(self._root(key), []).append(key)
        notes: dict[str, dict[Hashable, dict[Any, None]]] = {}
        for kind, pairs in self.seen.items():
            for key, what in pairs:
                notes.setdefault(kind, {}).setdefault(self._root(key), {})[what] = None
        order = {node: i for i, node in enumerate(self.program.graph.nodes)}
        made = []
        for root, values in groups.items():
            values.sort(key=order.__getitem__)
            told = {kind: tuple(by_root.get(root, ())) for kind, by_root in notes.items()}
            made.append(Basis(_channels(values[0]), tuple(values), **told))
        return tuple(sorted(made, key=lambda b: order[b.values[0]]))

    def _root(self, key: Hashable) -> Hashable:
        self.parent.setdefault(key, key)
        while self.parent[key] != key:
            self.parent[key] = self.parent[self.parent[key]]
            key = self.parent[key]
        return key

    def _join(self, *keys: Hashable) -> None:
        first, *others = map(self._root, keys)
        for other in others:
            self.parent[self._root(other)] = self._root(first)

    def _note(self, kind: str, key: Hashable, what: Any) -> None:
        self._root(key)
        self.seen[kind].append((key, what))

    def _port(self, kind: str, value: fx.Node, weight: Any, axis: int) -> None:
        """value is written (or read) by this axis of a weight; a weight that is computed is a barrier."""
        if str(weight.target) not in self.program.weights:
            for met in (value, weight):
                self.stop(met, value, "it meets a weight that is computed")
            return
        port = Port(str(weight.target), axis)
        self._join(value, port)
        self._note(kind, value, port)

    def _value(self, node: Any) -> fx.Node:
        """A value; a weight that is read as one is written by its own last axis."""
        if node.op == "get_attr":
            last = node.meta["val"].dim() - 1
            self._port("writers", node, node, last)
            for axis in range(last):
                self._keep(node, axis, node, "its rows are values")
        return node

    def _embedding(self, node: fx.Node) -> None:
        table: Any = node.args[0]
        self._port("writers", node, table, 1)
        self._keep(table, 0, node, "its rows are looked up")

    def _keep(self, weight: fx.Node, axis: int, node: fx.Node, why: str) -> None:
        """This axis of a weight cannot change, whatever else reads the weight."""
        self.stop(Port(str(weight.target), axis), node, why)

    def _linear(self, node: fx.Node) -> None:
        x, weight, bias = node.args[0], node.args[1], argument(node, 2, "bias")
        if weight.meta["val"].dim() != 2:  # type: ignore[union-attr]
            self._unknown(node)
            return
        self._port("readers", self._value(x), weight, 1)
        self._port("writers", node, weight, 0)
        if bias is not None:
            self._port("writers", node, bias, 0)

    def _rms_norm(self, node: fx.Node) -> None:
        x: Any = node.args[0]
        shape, weight = node.args[1], argument(node, 2, "weight")
        if len(shape) != 1:  # type: ignore[arg-type]
            self._unknown(node)
        elif weight is None:
            self._join(self._value(x), node)
        else:
            self._diagonal(self._value(x), node, weight)

    def _diagonal(self, x: fx.Node, node: fx.Node, weight: fx.Node) -> None:
        if weight.op != "get_attr" or weight.meta["val"].dim() != 1:
            self._unknown(node)
            return
        self._keep(weight, 0, node, "it is a factor per channel")
        diagonal = Diagonal(node, str(weight.target))
        self._note("leaving", x, diagonal)
        self._note("entering", node, diagonal)

    def _sum(self, node: fx.Node) -> None:
        for value in node.args[:2]:
            if isinstance(value, fx.Node) and _channels(value) == _channels(node):
                self._join(self._value(value), node)
            elif number(value) != 0:
                self.stop(node, node, "one number is added to all channels")
                self._scalar(value, node)

    def _scalar(self, value: Any, node: fx.Node) -> None:
        """What meets all channels of another value: as a channel, it cannot even change its sign."""
        if isinstance(value, fx.Node) and _channels(value):
            self.stop(value, node, "it meets all channels of another value")
            if value.op == "get_attr":
                self._keep(value, value.meta["val"].dim() - 1, node, "it meets all channels of another value")

    def _factor(self, node: fx.Node) -> None:
        wide = [a for a in node.args[:2] if isinstance(a, fx.Node) and _channels(a) == _channels(node)]
        values = [a for a in wide if a.op != "get_attr"]
        rows = all(_one_per_row(a) for a in node.args[:2] if a not in wide)
        divides = is_call(node, aten.div.Tensor)
        if len(values) != 1 or not rows or (divides and values[0] is not node.args[0]):
            self._unknown(node)
            return
        for factor in node.args[:2]:
            if factor not in wide:
                self._scalar(factor, node)
        if len(wide) == 1:
            self._join(values[0], node)
        elif divides:
            self._unknown(node)
        else:
            self._diagonal(values[0], node, next(a for a in wide if a.op == "get_attr"))

    def _view(self, node: fx.Node) -> None:
        values = [n for n in node.all_input_nodes if _channels(n)]
        if values and all(_keeps_rows(value, node) for value in values):
            self._join(node, *map(self._value, values))
        else:
            self._unknown(node)

    def _unknown(self, node: fx.Node) -> None:
        why = f"channels are not interchangeable in '{operator_word(node)}'"
        if is_call(node, aten.layer_norm.default):
            why = "'layer_norm' subtracts the mean over the channels"
        for value in (node, *node.all_input_nodes):
            if _channels(value):
                self.stop(value, node, why)
                for axis in range(value.meta["val"].dim()) if value.op == "get_attr" else ():
                    self._keep(value, axis, node, why)


def _channels(node: Any) -> int:
    """The length of the last axis of a floating-point value; 0 for anything else."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return (width(node) or 0) if floating else 0


def _one_per_row(factor: Any) -> bool:
    """A number, or a tensor with one element for all channels."""
    if not isinstance(factor, fx.Node):
        return number(factor) is not None
    value = factor.meta["val"]
    return not isinstance(value, Tensor) or value.dim() == 0 or value.shape[-1] == 1


def _keeps_rows(value: fx.Node, node: fx.Node) -> bool:
    """Does this view leave the last axis as it was?"""
    if _channels(value) != _channels(node) or not _channels(node):
        return False
    before, after = value.meta["val"].dim() - 1, node.meta["val"].dim() - 1
    if is_call(node, aten.transpose.int):
        return not {before, -1} & set(node.args[1:3])
    if is_call(node, aten.permute.default):
        return node.args[1][-1] in (before, -1)  # type: ignore[index]
    if is_call(node, aten.unsqueeze.default, aten.squeeze.dim):
        axis: Any = node.args[1]
        return (
            axis not in (-1, max(before, after)) if is_call(node, aten.unsqueeze.default) else axis not in (-1, before)
        )
    if is_call(node, aten.select.int):
        return node.args[1] not in (-1, before)
    if is_call(node, aten.index.Tensor):
        return len(node.args[1]) <= before or node.args[1][before] is None  # type: ignore[arg-type,index]
    if is_call(node, aten.cat.default, aten.repeat_interleave.self_int):
        return argument(node, 1 if is_call(node, aten.cat.default) else 2, "dim", 0) not in (-1, before, None)
    return True


def rotatable(found: Iterable[Basis]) -> list[Basis]:
    """Those without a barrier that weights both write and read."""
    return [b for b in found if not b.barriers and b.writers and b.readers]
