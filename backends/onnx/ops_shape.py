"""Operators that move elements, and lengths."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from drawplate.backends.onnx.graph import KEEP, Name
from drawplate.backends.onnx.ops_attention import flat
from drawplate.backends.onnx.rules import Rule, Rules, Writer, axis_of, dtype
from drawplate.canonical.match import argument, aten, value

END = torch.iinfo(torch.int64).max


def _fixed(node: fx.Node, axis: int) -> int | None:
    """A length, if it is a number."""
    n: Any = value(node).shape[axis]
    return n if isinstance(n, int) else None


def write_reshape(w: Writer, node: fx.Node) -> Name:
    """Attention's result is read as it was written, before it was turned."""
    found = flat(w, node)
    return found or w.graph.node("Reshape", w.value(node.args[0]), w.shape(node.args[1]))


def write_transpose(w: Writer, node: fx.Node) -> Name:
    """Two axes exchanged."""
    order = list(range(value(node).dim()))
    a, b = (axis_of(node, axis) for axis in node.args[1:3])
    order[a], order[b] = b, a
    return w.graph.transpose(w.value(node.args[0]), *order)


def write_permute(w: Writer, node: fx.Node) -> Name:
    """Axes in another order."""
    order = [axis_of(node, axis) for axis in node.args[1]]  # type: ignore[union-attr]
    return w.graph.transpose(w.value(node.args[0]), *order)


def write_unsqueeze(w: Writer, node: fx.Node) -> Name:
    """A new axis of length 1."""
    return w.graph.node("Unsqueeze", w.value(node.args[0]), w.graph.integers(axis_of(node, node.args[1])))


def write_squeeze(w: Writer, node: fx.Node) -> Name:
    """An axis of length 1 taken away."""
    source: Any = node.args[0]
    return w.graph.node("Squeeze", w.value(source), w.graph.integers(axis_of(source, node.args[1])))


def _is_one(node: fx.Node) -> str | None:
    source: Any = node.args[0]
    return None if _fixed(source, axis_of(source, node.args[1])) == 1 else "the length of the axis may be other than 1"


def write_expand(w: Writer, node: fx.Node) -> Name:
    """Axes of length 1 repeated; -1 leaves a length as it is, which 1 does in ONNX."""
    lengths = [1 if n == -1 else n for n in node.args[1]]  # type: ignore[union-attr]
    return w.graph.node("Expand", w.value(node.args[0]), w.sizes(lengths))


def write_slice(w: Writer, node: fx.Node) -> Name:
    """A run of one axis."""
    axis, start, end, step = (argument(node, i + 1, n, d) for i, (n, d) in enumerate(_SLICE))
    bounds = [w.length(start or 0), w.length(END if end is None else end)]
    axes = w.graph.integers(axis_of(node, axis))
    return w.graph.node("Slice", w.value(node.args[0]), *bounds, axes, w.length(step))


_SLICE: tuple[tuple[str, Any], ...] = (("dim", 0), ("start", None), ("end", None), ("step", 1))


def write_last_position(w: Writer, node: fx.Node) -> Name:
    """x [b, s, d] -> [b, 1, d]."""
    return w.graph.node("Slice", w.value(node.args[0]), *(w.graph.integers(n) for n in (-1, END, 1)))


def write_select(w: Writer, node: fx.Node) -> Name:
    """One place of an axis, which goes away."""
    source: Any = node.args[0]
    place = w.graph.constant(torch.tensor(node.args[2]))
    return w.graph.node("Gather", w.value(source), place, axis=axis_of(source, node.args[1]))


def write_cat(w: Writer, node: fx.Node) -> Name:
    """Values one after the other along an axis."""
    parts: Any = node.args[0]
    same = [w.cast(x, dtype(node)) for x in parts]
    return w.graph.node("Concat", *same, axis=axis_of(node, argument(node, 1, "dim", 0)))


def write_split(w: Writer, node: fx.Node) -> tuple[Name, ...]:
    """A value cut along an axis: chunk, split and split_with_sizes."""
    source: Any = node.args[0]
    axis = axis_of(source, argument(node, 2, "dim", 0))
    sizes = w.graph.integers(*(int(part.shape[axis]) for part in node.meta["val"]))
    return w.graph.several(len(node.meta["val"]), "Split", w.value(source), sizes, axis=axis)


def _sizes_are_known(node: fx.Node) -> str | None:
    source: Any = node.args[0]
    known = _fixed(source, axis_of(source, argument(node, 2, "dim", 0))) is not None
    return None if known else "the length of the axis varies"


def write_getitem(w: Writer, node: fx.Node) -> Name:
    """One result of several."""
    results: Any = w.values[node.args[0]]  # type: ignore[index]
    name: Name = results[node.args[1]]
    return name


def write_repeat(w: Writer, node: fx.Node) -> Name:
    """Each element of an axis several times, one copy beside the other."""
    x, count, axis = w.value(node.args[0]), int(node.args[1]), axis_of(node, argument(node, 2, "dim"))  # type: ignore[arg-type]
    copies = [w.graph.node("Unsqueeze", x, w.graph.integers(axis + 1))] * count
    beside = w.graph.node("Concat", *copies, axis=axis + 1)
    behind = [int(n) for n in value(node).shape[axis + 1 :]]
    return w.graph.reshape(beside, *[KEEP] * axis, -1, *behind)


def _repeats_are_known(node: fx.Node) -> str | None:
    axis = argument(node, 2, "dim")
    if axis is None or not isinstance(node.args[1], int):
        return "how often it repeats, or along which axis, is not a number"
    behind = value(node).shape[axis_of(node, axis) + 1 :]
    return None if all(isinstance(n, int) for n in behind) else "an axis behind the repeated one varies"


def write_index(w: Writer, node: fx.Node) -> Name:
    """Places of the first axis."""
    places: Any = node.args[1]
    return w.graph.node("Gather", w.value(node.args[0]), w.value(places[0]))


def _one_index(node: fx.Node) -> str | None:
    places: Any = node.args[1]
    plain = len(places) == 1 and value(places[0]).dtype in (torch.int64, torch.int32)
    return None if plain else "it takes places of several axes, or a mask"


def write_gather(w: Writer, node: fx.Node) -> Name:
    """For each place its element along an axis."""
    source: Any = node.args[0]
    axis = axis_of(source, node.args[1])
    return w.graph.node("GatherElements", w.value(source), w.value(node.args[2]), axis=axis)


def write_topk(w: Writer, node: fx.Node) -> tuple[Name, ...]:
    """The largest k along an axis, and where they are."""
    source: Any = node.args[0]
    axis = axis_of(source, argument(node, 2, "dim", -1))
    return w.graph.several(2, "TopK", w.value(source), w.length(node.args[1]), axis=axis)


def write_size(w: Writer, node: fx.Node) -> Name:
    """A length, as int64 [1]."""
    source: Any = node.args[0]
    axis = axis_of(source, node.args[1])
    return w.graph.node("Shape", w.value(source), start=axis, end=axis + 1)


def _of_lengths(kind: str) -> Rule:
    """Arithmetic on lengths."""
    return Rule(lambda w, node: w.graph.node(kind, *(w.length(n) for n in node.args)))


def write_arange(w: Writer, node: fx.Node) -> Name:
    """0, 1, .. up to a length."""
    numbers = [w.graph.reshape(w.length(n)) for n in (0, node.args[0], 1)]
    found = w.graph.node("Range", *numbers)
    return found if dtype(node) == torch.int64 else w.graph.cast(found, dtype(node))


def _filled(number: float | None = None) -> Rule:
    """A value of one number everywhere; None: of the node's own argument."""

    def write(w: Writer, node: fx.Node) -> Name:
        fill = node.args[1] if number is None else number
        lengths: Any = node.args[1] if node.target is aten.new_ones.default else node.args[0]
        return w.graph.node("Expand", w.cast(fill, dtype(node)), w.sizes(lengths))

    return Rule(write)


def write_same(w: Writer, node: fx.Node) -> Name:
    """What changes nothing in ONNX."""
    return w.value(node.args[0])


SHAPE: Rules = {
    aten.reshape.default: Rule(write_reshape),
    aten.transpose.int: Rule(write_transpose),
    aten.permute.default: Rule(write_permute),
    aten.unsqueeze.default: Rule(write_unsqueeze),
    aten.squeeze.dim: Rule(write_squeeze, _is_one),
    aten.expand.default: Rule(write_expand),
    aten.slice.Tensor: Rule(write_slice),
    aten.select.int: Rule(write_select),
    aten.cat.default: Rule(write_cat),
    aten.chunk.default: Rule(write_split, _sizes_are_known),
    aten.split.Tensor: Rule(write_split, _sizes_are_known),
    aten.split_with_sizes.default: Rule(write_split, _sizes_are_known),
    aten.repeat_interleave.self_int: Rule(write_repeat, _repeats_are_known),
    aten.index.Tensor: Rule(write_index, _one_index),
    aten.gather.default: Rule(write_gather),
    aten.topk.default: Rule(write_topk),
    aten.arange.default: Rule(write_arange),
    aten.zeros.default: _filled(0),
    aten.ones.default: _filled(1),
    aten.new_ones.default: _filled(1),
    aten.full.default: _filled(),
    aten.contiguous.default: Rule(write_same),
    aten.sym_size.int: Rule(write_size),
    torch.ops.drawplate.last_position.default: Rule(write_last_position),
    operator.getitem: Rule(write_getitem),
    operator.mul: _of_lengths("Mul"),
    operator.add: _of_lengths("Add"),
    operator.sub: _of_lengths("Sub"),
}
