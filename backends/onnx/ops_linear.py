"""Linears and tables, stored or not, and norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from drawplate.backends.onnx import nbits, qdq
from drawplate.backends.onnx.graph import Name
from drawplate.backends.onnx.rules import Rule, Rules, Writer, axis_of, dtype
from drawplate.backends.onnx.target import is_block
from drawplate.canonical.match import argument, aten
from drawplate.encoding import QTensor


def stored(w: Writer, x: Any) -> QTensor | None:
    """The weight that this node reads, if it is stored as integers."""
    weight = w.program.weights.get(str(x.target)) if isinstance(x, fx.Node) and x.op == "get_attr" else None
    return weight if isinstance(weight, QTensor) else None


def write_weight(w: Writer, node: fx.Node) -> Name:
    """A get_attr node. A stored weight is written by what reads it."""
    name = str(node.target)
    weight = w.program.weights[name]
    if isinstance(weight, QTensor):
        return name
    return w.graph.stored(name, weight.dtype, weight.shape, 8 * weight.element_size(), name, lambda: weight)


def write_linear(w: Writer, node: fx.Node) -> Name:
    """x [.., in] times a weight [out, in], plus a bias."""
    x, bias = w.value(node.args[0]), argument(node, 2, "bias")
    source: Any = node.args[1]
    added = w.value(bias) if bias is not None else ""
    if (weight := stored(w, source)) is None:
        product = w.graph.node("MatMul", x, w.graph.transpose(w.value(source), 1, 0))
    elif w.form == "nbits":
        return nbits.matmul(w, x, str(source.target), weight, added)
    else:
        product = qdq.matmul(w, x, str(source.target), weight)
    return w.graph.node("Add", product, added) if added else product


def write_embedding(w: Writer, node: fx.Node) -> Name:
    """Rows of a table."""
    source: Any = node.args[0]
    ids, name = w.value(node.args[1]), str(source.target)
    if (table := stored(w, source)) is None:
        return w.graph.node("Gather", w.value(source), ids)
    run = table.encoding.blocks(table.shape)[1]
    return (nbits if w.form == "nbits" and is_block(run) else qdq).gather(w, name, table, ids)


def write_rms_norm(w: Writer, node: fx.Node) -> Name:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""
    x, weight, eps = w.value(node.args[0]), argument(node, 2, "weight"), argument(node, 3, "eps")
    given = torch.finfo(dtype(node)).eps if eps is None else float(eps)
    ones = torch.ones(_shape_of_norm(node), dtype=dtype(node))
    factor = w.graph.constant(ones) if weight is None else w.value(weight)
    return w.graph.node("RMSNormalization", x, factor, axis=-1, epsilon=given)


def write_layer_norm(w: Writer, node: fx.Node) -> Name:
    """Over the last axis."""
    x, weight, bias = w.value(node.args[0]), argument(node, 2, "weight"), argument(node, 3, "bias")
    factor = w.graph.constant(torch.ones(_shape_of_norm(node))) if weight is None else w.value(weight)
    added = [w.value(bias)] if bias is not None else []
    return w.graph.node("LayerNormalization", x, factor, *added, axis=-1, epsilon=float(argument(node, 4, "eps", 1e-5)))


def _shape_of_norm(node: fx.Node) -> list[int]:
    return list(node.args[1])  # type: ignore[arg-type]


def _one_axis(node: fx.Node) -> str | None:
    return None if len(_shape_of_norm(node)) == 1 else "it is over several axes"


def write_softmax(w: Writer, node: fx.Node) -> Name:
    """Along one axis."""
    return w.graph.node("Softmax", w.cast(node.args[0], dtype(node)), axis=axis_of(node, node.args[1]))


def write_matmul(w: Writer, node: fx.Node) -> Name:
    """Two values, neither of which is stored."""
    return w.graph.node("MatMul", w.value(node.args[0]), w.value(node.args[1]))


LINEAR: Rules = {
    aten.linear.default: Rule(write_linear),
    aten.embedding.default: Rule(write_embedding),
    aten.rms_norm.default: Rule(write_rms_norm, _one_axis),
    aten.layer_norm.default: Rule(write_layer_norm, _one_axis),
    aten.softmax.int: Rule(write_softmax),
    aten.matmul.default: Rule(write_matmul),
    aten.bmm.default: Rule(write_matmul),
}
