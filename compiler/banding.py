"""Cutting hidden channels into bands, with weights of their own.

A hidden axis: the branch between its linears once for each band. y = W_down f(W_up x) becomes the sum over bands b of
W_down[:, b] f(W_up[b] x). Nothing is put together and taken apart again in between, as it would be with a concatenation
of bands that the readers slice: each band's weights are plain linears, those of all bands that read x can still be
merged, and each band of f(..) is rounded with a range of its own.

The values of an attention: it mixes positions, and would do so again for each band. So the bands of each head are put
together in front of it, and the linears behind it read slices of the heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, fx

from drawplate.analysis.channels import ValuePath
from drawplate.analysis.hidden import HiddenAxis, Writer
from drawplate.canonical.match import argument, aten, expression
from drawplate.program import Editor

LINEAR, RESHAPE = aten.linear.default, aten.reshape.default


def band_name(weight: str, band: int, word: str = "band") -> str:
    """The name of a weight's band, the most salient being 0.

    >>> band_name("layers.0.mlp.up_proj.weight", 1), band_name("up", 0)
    ('layers.0.mlp.up_proj.band1.weight', 'up.band0')
    """
    module, dot, last = weight.rpartition(".")
    return f"{module}.{word}{band}.{last}" if dot else f"{last}.{word}{band}"


def cut(editor: Editor, axis: HiddenAxis, parts: Sequence[Tensor]) -> None:
    """parts: int [n] of each band, its channels; together every channel of the axis once."""
    bands: list[dict[fx.Node, fx.Node]] = [{} for _ in parts]  # the band's own copy of each node
    for writer in axis.writers:
        linear, name = editor.of(writer.linear), _part(writer, axis)
        with editor.graph.inserting_before(linear):
            for i, band in enumerate(bands):
                band[editor.of(writer.value)] = _rows(editor, linear, writer.rows[parts[i]], i, name)
    for node in map(editor.of, axis.between):
        with editor.graph.inserting_before(node):
            for i, band in enumerate(bands):
                band[node] = _pass_on(editor, node, {**band, **_factors(editor, node, axis.width, parts[i], i)})
    for reader in map(editor.of, axis.readers):
        value: Any = reader.args[0]
        with editor.graph.inserting_before(reader):
            _sum(editor, reader, [_columns(editor, reader, b[value], parts[i], i) for i, b in enumerate(bands)])


def cut_values(editor: Editor, path: ValuePath, order: Tensor, widths: Sequence[int]) -> None:
    """order: int [heads, d], the channels of each key-value head; a band is the next `width` of them in every head.

    The rows of the values, and the columns that read them, are head by head: see whole_heads.
    """
    ends = list(pairwise(accumulate(widths, initial=0)))
    writer = editor.of(path.writer)
    with editor.graph.inserting_before(writer):
        lengths, heads = _lengths(editor, writer), []
        for i, (a, b) in enumerate(ends):
            band = _rows(editor, writer, path.rows.gather(1, order[:, a:b]).flatten(), i)
            heads.append(_reshaped(editor, band, lengths, len(order), b - a))
        together = editor.call(aten.cat.default, heads, -1, like=writer)
        whole = _reshaped(editor, together, lengths, order.numel())
    editor.replace(writer, whole)
    for node, columns in path.readers:
        reader = editor.of(node)
        value: Any = reader.args[0]
        own = order.repeat_interleave(len(columns) // len(order), 0)
        with editor.graph.inserting_before(reader):
            lengths, parts = _lengths(editor, reader), []
            apart = _reshaped(editor, value, lengths, *columns.shape)
            for i, (a, b) in enumerate(ends):
                taken = editor.call(aten.slice.Tensor, apart, -1, a, b, like=reader)
                read = _reshaped(editor, taken, lengths, len(columns) * (b - a))
                parts.append(_columns(editor, reader, read, columns.gather(1, own[:, a:b]).flatten(), i))
            _sum(editor, reader, parts)


def whole_heads(path: ValuePath) -> bool:
    """Are all rows of the values' weight theirs, head by head, and so the columns that read them?"""
    rows = int(path.writer.meta["val"].shape[-1])
    numbered = [path.rows, *(columns for _, columns in path.readers)]
    return path.rows.numel() == rows and all(torch.equal(n.flatten(), torch.arange(n.numel())) for n in numbered)


def _part(writer: Writer, axis: HiddenAxis) -> int | None:
    """Which part of a fused linear this is; None if it writes nothing else."""
    parts = [w for w in axis.writers if w.linear is writer.linear]
    return parts.index(writer) if len(parts) > 1 else None


def _rows(editor: Editor, linear: fx.Node, rows: Tensor, band: int, part: int | None = None) -> fx.Node:
    """A linear with these rows of another. part: of it, if it is fused from several."""
    reads = []
    for read in linear.all_input_nodes[1:]:
        whole: Any = editor.weights[str(read.target)]
        name = str(read.target) if part is None else band_name(str(read.target), part, "part")
        reads.append(editor.weight(editor.unused(band_name(name, band)), whole[rows]))
    return editor.call(LINEAR, linear.args[0], *reads, like=linear)


def _factors(editor: Editor, node: fx.Node, width: int, part: Tensor, band: int) -> dict[fx.Node, fx.Node]:
    """For the weights that a pointwise node reads with an element per channel, those of the band."""
    found = {}
    for read in (n for n in node.all_input_nodes if n.op == "get_attr"):
        whole: Any = editor.weights[str(read.target)]
        if whole.dim() and whole.shape[-1] == width:
            found[read] = editor.weight(editor.unused(band_name(str(read.target), band)), whole[..., part])
    return found


def _pass_on(editor: Editor, node: fx.Node, values: dict[fx.Node, fx.Node]) -> fx.Node:
    """The same node of other values."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values.get(n, n))
    target: Any = node.target
    return editor.call(target, *args, like=node, **kwargs)


def _columns(editor: Editor, linear: fx.Node, value: fx.Node, columns: Tensor, band: int) -> fx.Node:
    """A linear with these columns of another, of a value of its own. The bias is the first band's."""
    name = str(linear.all_input_nodes[1].target)
    whole: Any = editor.weights[name]
    read = editor.weight(editor.unused(band_name(name, band)), whole[:, columns])
    bias = argument(linear, 2, "bias") if band == 0 else None
    return editor.call(LINEAR, value, read, *([] if bias is None else [bias]), like=linear)


def _sum(editor: Editor, node: fx.Node, parts: Sequence[fx.Node]) -> None:
    """The sum of the parts in the place of the node."""
    editor.replace(node, reduce(lambda a, b: editor.call(aten.add.Tensor, a, b, like=node), parts))


def _reshaped(editor: Editor, value: fx.Node, lengths: Sequence[Any], *last: int) -> fx.Node:
    """The value's last axis as these ones. lengths: all the others."""
    return editor.call(RESHAPE, value, [*lengths, *last], like=value)


def _lengths(editor: Editor, linear: fx.Node) -> list[Any]:
    """All but the last of the lengths of what a linear gives: numbers, or the nodes that say them."""
    said = {expression(n.meta["val"]): n for n in reversed(editor.nodes(aten.sym_size.int)) if "val" in n.meta}
    lengths = []
    for axis, length in enumerate(map(expression, linear.meta["val"].shape[:-1])):
        known = length if isinstance(length, int) else said.get(length)
        lengths.append(editor.call(aten.sym_size.int, linear.args[0], axis) if known is None else known)
    return lengths
