"""Stored weights as ONNX's own DequantizeLinear reads them."""

from __future__ import annotations

from torch import Tensor

from drawplate.backends.onnx import packing
from drawplate.backends.onnx.graph import Name
from drawplate.backends.onnx.nbits import scales
from drawplate.backends.onnx.rules import Writer
from drawplate.canonical.match import aten
from drawplate.encoding import QTensor


def matmul(w: Writer, x: Name, name: str, weight: QTensor) -> Name:
    """x [.., in] times a weight [out, in]. It is stored as [in, out], which runtimes fuse with the product; as it is
    where an embedding reads its rows, so that it is there once."""
    tied = any(reader.target is aten.embedding.default for reader in w.program.readers(name))
    axis, run = int(not tied), weight.encoding.blocks(weight.shape)[1]
    layout = {"axis": axis} if run == weight.shape[1] else {"axis": 1 - axis, "block_size": run}
    parts = _parts(w, name, weight, turned=not tied)
    matrix = w.graph.node("DequantizeLinear", *parts, **layout)
    return w.graph.node("MatMul", x, w.graph.transpose(matrix, 1, 0) if tied else matrix)


def gather(w: Writer, name: str, table: QTensor, ids: Name) -> Name:
    """Rows of an 8-bit table with their scales, dequantised once they are read."""
    codes, *grid = (w.graph.node("Gather", part, ids) for part in _parts(w, name, table))
    run = table.encoding.blocks(table.shape)[1]
    if run == table.shape[1]:
        grid = [w.graph.node("Unsqueeze", part, w.graph.integers(-1)) for part in grid]
    return w.graph.node("DequantizeLinear", codes, *grid, axis=-1, block_size=run)


def _parts(w: Writer, name: str, weight: QTensor, *, turned: bool = False) -> list[Name]:
    """Codes [out, in], scales and zero points: one for all [], for each row [out], or for each block [out, blocks].
    Without zero points they are 0. turned: with the axes exchanged."""
    n, k = weight.shape
    rows, run = weight.encoding.blocks(weight.shape)
    groups = (n, k // run) if run < k else (n,) if rows == 1 else ()
    order = -1 if turned else 1
    parts = [
        _integers(w, name, weight, "codes", (n, k)[::order], turned),
        scales(w, name, weight, groups[::order], turned=turned),
    ]
    if not (weight.encoding.symmetric and weight.encoding.signed):
        parts.append(_integers(w, name, weight, "zero_point", groups[::order], turned))
    return parts


def _integers(w: Writer, name: str, weight: QTensor, what: str, shape: tuple[int, ...], turned: bool) -> Name:
    """Codes or zero points as integers of their own size, with the axes exchanged if turned."""
    encoding = weight.encoding
    kind = f"{'' if encoding.signed else 'u'}int{encoding.bits}"

    def contents() -> Tensor:
        numbers = weight.integers() if what == "codes" else weight.grid.zero_point
        return packing.plain(numbers.T if turned else numbers, encoding)

    return w.graph.stored(f"{name}.{what}", kind, shape, encoding.bits, name, contents)
