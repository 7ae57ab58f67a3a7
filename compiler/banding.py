"""Cutting a hidden axis into bands: the branch between its linears once for each band, with weights of its own.

y = W_down f(W_up x) becomes the sum over bands b of W_down[:, b] f(W_up[b] x). Nothing is put together and taken apart
again in between, as it would be with a concatenation of bands that the readers slice: each band's weights are plain
linears, those of all bands that read x can still be merged, and each band of f(..) is rounded with a range of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

from torch import Tensor, fx

from drawplate.analysis.hidden import HiddenAxis, Writer
from drawplate.canonical.match import argument, aten
from drawplate.program import Editor


def band_name(weight: str, band: int, word: str = "band") -> str:
    """The name of a weight's band, the most salient being 0.

    >>> band_name("layers.0.mlp.up_proj.weight", 1), band_name("up", 0)
    ('layers.0.mlp.up_proj.band1.weight', 'up.band0')
    """
    module, dot, last = weight.rpartition(".")
    return f"{module}.{word}{band}.{last}" if dot else f"{last}.{word}{band}"


def cut(editor: Editor, axis: HiddenAxis, parts: Sequence[Tensor]) -> None:
    """parts: int [n] of each band, its channels; together every channel of the axis once."""
    bands: list[dict[fx.Node, fx.Node]] = [{} for _ in parts]
    for writer in axis.writers:
        part_of = [w for w in axis.writers if w.linear is writer.linear]
        number = part_of.index(writer) if len(part_of) > 1 else None
        _write(editor, writer, parts, bands, number)
    for node in axis.between:
        _pass_on(editor, editor.of(node), axis.width, parts, bands)
    for reader in axis.readers:
        _read(editor, editor.of(reader), parts, bands)


def _write(
    editor: Editor, writer: Writer, parts: Sequence[Tensor], bands: list[dict[fx.Node, fx.Node]], number: int | None
) -> None:
    """A linear for each band in front of the one that gave the whole. number: of this part of a fused linear."""
    linear, value = editor.of(writer.linear), editor.of(writer.value)
    with editor.graph.inserting_before(linear):
        for i, (part, band) in enumerate(zip(parts, bands, strict=True)):
            reads = []
            for read in linear.all_input_nodes[1:]:
                whole: Any = editor.weights[str(read.target)]
                name = str(read.target) if number is None else band_name(str(read.target), number, "part")
                reads.append(editor.weight(editor.unused(band_name(name, i)), whole[writer.rows[part]]))
            band[value] = editor.call(aten.linear.default, linear.args[0], *reads, like=linear)


def _pass_on(
    editor: Editor, node: fx.Node, width: int, parts: Sequence[Tensor], bands: list[dict[fx.Node, fx.Node]]
) -> None:
    """A pointwise node for each band; of weights with an element per channel, the band's."""
    with editor.graph.inserting_before(node):
        for i, (part, band) in enumerate(zip(parts, bands, strict=True)):
            values = dict(band)
            for read in (n for n in node.all_input_nodes if n.op == "get_attr"):
                whole: Any = editor.weights[str(read.target)]
                if whole.dim() and whole.shape[-1] == width:
                    values[read] = editor.weight(editor.unused(band_name(str(read.target), i)), whole[..., part])
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values.get(n, n))  # noqa: B023
            band[node] = editor.call(node.target, *args, like=node, **kwargs)  # type: ignore[arg-type]


def _read(editor: Editor, linear: fx.Node, parts: Sequence[Tensor], bands: list[dict[fx.Node, fx.Node]]) -> None:
    """The sum of a linear for each band in the place of the one that read the whole. The bias is the first one's."""
    value, matrix = linear.all_input_nodes[:2]
    whole: Any = editor.weights[str(matrix.target)]
    bias: Any = argument(linear, 2, "bias")
    with editor.graph.inserting_before(linear):
        results = []
        for i, (part, band) in enumerate(zip(parts, bands, strict=True)):
            read = editor.weight(editor.unused(band_name(str(matrix.target), i)), whole[:, part])
            biases = [bias] if bias is not None and i == 0 else []
            results.append(editor.call(aten.linear.default, band[value], read, *biases, like=linear))
        total = reduce(lambda a, b: editor.call(aten.add.Tensor, a, b, like=linear), results)
    editor.replace(linear, total)
