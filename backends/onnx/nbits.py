"""Stored weights as com.microsoft.MatMulNBits and GatherBlockQuantized read them."""

from __future__ import annotations

import torch

from drawplate.backends.onnx import packing
from drawplate.backends.onnx.graph import Name
from drawplate.backends.onnx.rules import Writer
from drawplate.encoding import QTensor
from drawplate.scheme import SCALE_DTYPES


def matmul(w: Writer, x: Name, name: str, weight: QTensor, bias: Name) -> Name:
    """x [.., in] times a weight [out, in], plus a bias (empty: none)."""
    n, k = weight.shape
    inputs = [x, _codes(w, name, weight), scales(w, name, weight), _zeros(w, name, weight), "", bias]
    while not inputs[-1]:
        inputs.pop()
    layout = {"K": k, "N": n, "bits": weight.encoding.bits, "block_size": _run(weight)}
    if w.accuracy_level:
        layout["accuracy_level"] = w.accuracy_level
    return w.graph.node("MatMulNBits", *inputs, **layout)


def gather(w: Writer, name: str, table: QTensor, ids: Name) -> Name:
    """Rows of a table. A head that is tied to it reads the same bytes in another shape, so they are there once."""
    rows = w.graph.reshape(_codes(w, name, table), table.shape[0], -1)
    inputs = [rows, ids, scales(w, name, table), *filter(None, [_zeros(w, name, table)])]
    layout = {"bits": table.encoding.bits, "block_size": _run(table), "gather_axis": 0, "quantize_axis": 1}
    return w.graph.node("GatherBlockQuantized", *inputs, **layout)


def scales(
    w: Writer, name: str, weight: QTensor, shape: tuple[int, ...] | None = None, *, turned: bool = False
) -> Name:
    """As stored, in the encoding's dtype, and then as float32: the runtime does that once, when it loads the file.
    shape: other than theirs. turned: with the weight's axes exchanged."""
    kind = SCALE_DTYPES[weight.encoding.scale]
    found = w.graph.stored(
        f"{name}.scale",
        kind,
        weight.grid.scale.shape if shape is None else shape,
        8 * kind.itemsize,
        name,
        lambda: packing.scales(weight).T if turned else packing.scales(weight),
    )
    return found if kind == torch.float32 else w.graph.cast(found, torch.float32)


def _codes(w: Writer, name: str, weight: QTensor) -> Name:
    """uint8 [out, blocks, bytes of a block]."""
    n, k = weight.shape
    shape = (n, k // _run(weight), _run(weight) * weight.encoding.bits // 8)
    return w.graph.stored(f"{name}.codes", "uint8", shape, 8, name, lambda: packing.blocks(weight).codes)


def _zeros(w: Writer, name: str, weight: QTensor) -> Name:
    """uint8 [out, bytes of a row's blocks]; empty where the weight is symmetric."""
    if weight.encoding.symmetric:
        return ""
    n, count = weight.grid.scale.shape
    shape = (n, (count * weight.encoding.bits + 7) // 8)
    return w.graph.stored(f"{name}.zero_point", "uint8", shape, 8, name, lambda: packing.zeros(weight))


def _run(weight: QTensor) -> int:
    """Elements of a block."""
    return weight.encoding.blocks(weight.shape)[1]
