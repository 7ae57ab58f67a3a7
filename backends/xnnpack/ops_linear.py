"""Operators that mix the elements of a row: linear and what surrounds it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from drawplate.backends.xnnpack.rules import Rule, Weights, Writer, all_of, lengths, only_float32, varies
from drawplate.backends.xnnpack.serialise import Value
from drawplate.backends.xnnpack.target import ACTIVATION, CHANNELS4, CHANNELS8, is_groups4
from drawplate.canonical.match import argument, aten, is_call, last_axis, value
from drawplate.encoding import Encoding, QTensor
from drawplate.program import Weight

ours = torch.ops.drawplate


def weight_of(node: fx.Node, weights: Weights) -> Weight | None:
    """The stored weight of a linear; None if its second operand is computed."""
    x = node.args[1]
    return weights.get(str(x.target)) if isinstance(x, fx.Node) and x.op == "get_attr" else None


def is_encoded(x: Any) -> bool:
    """Is this operand rounded to 8 bits per token in front of the linear?"""
    return is_call(x, ours.encode.default)


def linear_why_not(node: fx.Node, weights: Weights) -> str | None:
    """Weight and activation must be an entry of the menu; the bias is float32."""
    weight = weight_of(node, weights)
    if weight is None:
        return "its weight is computed; XNNPACK wants it in the file"
    x, bias = node.args[0], argument(node, 2, "bias")
    if value(x).dim() < 2:  # type: ignore[arg-type]
        return "its input is a single row without an axis for rows"
    if isinstance(bias, fx.Node) and (bias.op != "get_attr" or value(bias).dtype != torch.float32):
        return "its bias is not a float32 weight"
    if isinstance(weight, Tensor):
        if is_encoded(x):
            return "its input is rounded to 8 bits but its weight is not; XNNPACK has no such kernel"
        return None if weight.dtype == torch.float32 else f"XNNPACK has no {_name(weight.dtype)} linear on this path"
    if not is_encoded(x):
        return f"its weight is '{weight.encoding}' but its input is not rounded; XNNPACK has no weight-only kernel"
    if not known(weight.encoding):
        return f"XNNPACK has no kernel for '{weight.encoding}'"
    return None if value(x).dtype == torch.float32 else f"its input is {_name(value(x).dtype)}"  # type: ignore[arg-type]


def known(encoding: Encoding) -> bool:
    """Is it an encoding that XNNPACK's linears read?"""
    return encoding in (CHANNELS4, CHANNELS8) or is_groups4(encoding)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def linear(w: Writer, node: fx.Node) -> Value:
    """x [.., in] times a stored weight [out, in]."""
    weight, bias = weight_of(node, w.weights), argument(node, 2, "bias")
    name = str(node.args[1].target)  # type: ignore[union-attr]
    extra = {} if bias is None else {"bias": w.value(bias)}
    return w.graph.linear(w.value(node.args[0]), filter_of(w, name, weight), **extra)


def filter_of(w: Writer, name: str, weight: Weight | None) -> Value:
    """The weight as XNNPACK stores it."""
    if isinstance(weight, QTensor):
        if weight.encoding == CHANNELS8:
            return w.graph.int8_channels(name, weight)
        if weight.encoding == CHANNELS4:
            return w.graph.int4_channels(name, weight)
        return w.graph.int4_groups(name, weight)
    assert weight is not None
    return w.graph.constant(name, weight)


def encode_why_not(node: fx.Node, weights: Weights) -> str | None:
    """Per token, 8 bits, asymmetric, and read by linears that know what to do with it."""
    if Encoding.parse(str(node.args[1])) != ACTIVATION:
        return f"XNNPACK rounds activations as '{ACTIVATION}'"
    if not all(is_call(u, aten.linear.default) and u.args[0] is node for u in node.users):
        return "something else than a linear reads the rounded value"
    reasons = [reason for u in node.users if (reason := linear_why_not(u, weights))]
    return reasons[0] if reasons else only_float32(node, weights)


def rms_norm_why_not(node: fx.Node, weights: Weights) -> str | None:
    """Over the last axis."""
    return only_float32(node, weights) or (None if len(node.args[1]) == 1 else "it is over more than the last axis")  # type: ignore[arg-type]


def rms_norm(w: Writer, node: fx.Node) -> Value:
    """x / sqrt(mean(x^2) + eps) * weight."""
    x = w.value(node.args[0])
    y = _normalised(w, x, x, argument(node, 3, "eps"))
    weight = argument(node, 2, "weight")
    return y if weight is None else w.graph.binary("Multiply", y, w.value(weight))


def layer_norm(w: Writer, node: fx.Node) -> Value:
    """(x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias."""
    x = w.value(node.args[0])
    centred = w.graph.binary("Subtract", x, w.graph.mean(x))
    y = _normalised(w, centred, centred, argument(node, 4, "eps", 1e-5))
    weight, bias = argument(node, 2, "weight"), argument(node, 3, "bias")
    y = y if weight is None else w.graph.binary("Multiply", y, w.value(weight))
    return y if bias is None else w.graph.binary("Add", y, w.value(bias))


def _normalised(w: Writer, x: Value, of: Value, eps: Any) -> Value:
    """x / sqrt(mean(of^2) + eps)."""
    eps = torch.finfo(torch.float32).eps if eps is None else float(eps)
    mean = w.graph.mean(w.graph.unary("Square", of))
    root = w.graph.unary("ReciprocalSquareRoot", w.graph.binary("Add", mean, w.value(eps)))
    return w.graph.binary("Multiply", x, root)


def _last(node: fx.Node, weights: Weights) -> str | None:
    axes = node.args[1] if isinstance(node.args[1], (list, tuple)) else [node.args[1]]
    last = len(axes) == 1 and last_axis(node.args[0], axes[0])  # type: ignore[arg-type]
    return only_float32(node, weights) or (None if last else "it is not over the last axis alone")


def softmax(w: Writer, node: fx.Node) -> Value:
    """Over the last axis."""
    return w.graph.unary("Softmax", w.value(node.args[0]))


def _fixed_width(node: fx.Node, _: Weights) -> str | None:
    fixed = isinstance(value(node.args[0]).shape[-1], int)  # type: ignore[arg-type]
    return None if fixed else "the length of the axis varies"


def _keeps(node: fx.Node, _: Weights) -> str | None:
    dropped = not argument(node, 2, "keepdim", False) and sum(varies(node)) > 1
    return "two of its lengths vary; XNNPACK can work out one" if dropped else None


def mean(w: Writer, node: fx.Node) -> Value:
    """Over the last axis."""
    out = w.graph.mean(w.value(node.args[0]))
    return out if argument(node, 2, "keepdim", False) else w.graph.reshape(out, lengths(node), varies(node))


def _same_batch(node: fx.Node, _: Weights) -> str | None:
    """XNNPACK multiplies matrices pairwise."""
    a, b = (value(x) for x in node.args[:2])  # type: ignore[arg-type]
    if a.dim() < 3 or a.dim() != b.dim() or any(x.op == "get_attr" for x in node.all_input_nodes):
        return "XNNPACK multiplies batches of computed matrices with as many axes on both sides"
    same = all(str(m) == str(n) for m, n in zip(a.shape[:-2], b.shape[:-2], strict=True))
    return None if same else "its batches are not of one shape"


def matmul(w: Writer, node: fx.Node) -> Value:
    """a [.., m, k] times b [.., k, n]."""
    return w.graph.matmul(w.value(node.args[0]), w.value(node.args[1]))


LINEAR: dict[Any, Rule] = {
    aten.linear.default: Rule(linear_why_not, linear),
    ours.encode.default: Rule(encode_why_not, lambda w, n: w.graph.quantised(w.value(n.args[0]))),
    aten.rms_norm.default: Rule(rms_norm_why_not, rms_norm),
    aten.layer_norm.default: Rule(rms_norm_why_not, layer_norm),
    aten.softmax.int: Rule(_last, softmax),
    aten._softmax.default: Rule(_last, softmax),  # noqa: SLF001  (the operator's name)
    aten.mean.dim: Rule(all_of(_last, _fixed_width, _keeps), mean),
    aten.matmul.default: Rule(all_of(only_float32, _same_batch), matmul),
    aten.bmm.default: Rule(all_of(only_float32, _same_batch), matmul),
}
