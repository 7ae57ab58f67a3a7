"""Operators that look at each element by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import fx

from drawplate.backends.xnnpack.rules import Rule, Weights, Writer, all_of, only_float32
from drawplate.backends.xnnpack.serialise import Value
from drawplate.canonical.match import argument, aten, number


def _unary(kind: str) -> Rule:
    return Rule(only_float32, lambda w, n: w.graph.unary(kind, w.value(n.args[0])))


def _binary(kind: str) -> Rule:
    """`alpha` scales the second operand of add and sub."""

    def write(w: Writer, node: fx.Node) -> Value:
        a, b = (w.value(x) for x in node.args[:2])
        alpha = number(argument(node, 2, "alpha", 1)) if kind in ("Add", "Subtract") else 1
        if alpha != 1:
            b = w.graph.binary("Multiply", b, w.value(alpha))
        return w.graph.binary(kind, a, b)

    return Rule(all_of(only_float32, _no_rounding), write)


def _no_rounding(node: fx.Node, _: Weights) -> str | None:
    mode = node.kwargs.get("rounding_mode")
    return f"it rounds its quotient ({mode})" if mode else None


def silu(w: Writer, node: fx.Node) -> Value:
    """x * sigmoid(x)."""
    x = w.value(node.args[0])
    return w.graph.binary("Multiply", x, w.graph.unary("Sigmoid", x))


def gelu(w: Writer, node: fx.Node) -> Value:
    """Exact, or with tanh: (1 + tanh(z)) / 2 = sigmoid(2 z) (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""
    x = w.value(node.args[0])
    if argument(node, 1, "approximate", "none") != "tanh":
        return w.graph.unary("Gelu", x)
    twice = 2 * math.sqrt(2 / math.pi)
    cubic = w.graph.binary("Multiply", w.graph.unary("Square", x), w.value(twice * 0.044715))
    z = w.graph.binary("Multiply", x, w.graph.binary("Add", cubic, w.value(twice)))
    return w.graph.binary("Multiply", x, w.graph.unary("Sigmoid", z))


def rsub(w: Writer, node: fx.Node) -> Value:
    """other - alpha * x."""
    x, alpha = w.value(node.args[0]), number(argument(node, 2, "alpha", 1))
    if alpha != 1:
        x = w.graph.binary("Multiply", x, w.value(alpha))
    return w.graph.binary("Subtract", w.value(node.args[1]), x)


_POWERS: dict[float, Callable[[Writer, Value], Value]] = {
    0.5: lambda w, x: w.graph.unary("SquareRoot", x),
    -0.5: lambda w, x: w.graph.unary("ReciprocalSquareRoot", x),
    -1.0: lambda w, x: w.graph.binary("Div", w.value(1.0), x),
    1.0: lambda w, x: w.graph.binary("Multiply", x, w.value(1.0)),
    2.0: lambda w, x: w.graph.unary("Square", x),
    3.0: lambda w, x: w.graph.binary("Multiply", w.graph.unary("Square", x), x),
    4.0: lambda w, x: w.graph.unary("Square", w.graph.unary("Square", x)),
}


def _known_power(node: fx.Node, _: Weights) -> str | None:
    exponent = number(node.args[1])
    known = exponent in _POWERS
    return None if known else f"XNNPACK has no power of {exponent}; it has {', '.join(f'{p:g}' for p in _POWERS)}"


def power(w: Writer, node: fx.Node) -> Value:
    """x to a fixed power."""
    return _POWERS[float(node.args[1])](w, w.value(node.args[0]))  # type: ignore[arg-type]


def clamp(w: Writer, node: fx.Node) -> Value:
    """Limits that may be missing."""
    low, high = (number(argument(node, i, name)) for i, name in ((1, "min"), (2, "max")))
    return w.graph.clamp(w.value(node.args[0]), low, high)


def _plain_elu(node: fx.Node, _: Weights) -> str | None:
    scales = [number(argument(node, i, name, 1)) for i, name in ((2, "scale"), (3, "input_scale"))]
    return None if scales == [1, 1] else "XNNPACK's elu has no scales"


def _of_default(first: Any, second: Any) -> Callable[[Writer, fx.Node], Value]:
    def write(w: Writer, node: fx.Node) -> Value:
        low, high = argument(node, 1, "min_val", first), argument(node, 2, "max_val", second)
        return w.graph.clamp(w.value(node.args[0]), low, high)

    return write


_NAMES = {
    aten.abs.default: "Abs",
    aten.ceil.default: "Ceiling",
    aten.exp.default: "Exp",
    aten.floor.default: "Floor",
    aten.hardswish.default: "Hardswish",
    aten.log.default: "Log",
    aten.neg.default: "Negate",
    aten.rsqrt.default: "ReciprocalSquareRoot",
    aten.sigmoid.default: "Sigmoid",
    aten.sqrt.default: "SquareRoot",
    aten.square.default: "Square",
    aten.tanh.default: "Tanh",
}
_PAIRS = {
    aten.add.Tensor: "Add",
    aten.add.Scalar: "Add",
    aten.sub.Tensor: "Subtract",
    aten.sub.Scalar: "Subtract",
    aten.mul.Tensor: "Multiply",
    aten.mul.Scalar: "Multiply",
    aten.div.Tensor: "Div",
    aten.div.Scalar: "Div",
    aten.div.Tensor_mode: "Div",
    aten.maximum.default: "Maximum",
    aten.minimum.default: "Minimum",
}

POINTWISE: dict[Any, Rule] = {
    **{target: _unary(kind) for target, kind in _NAMES.items()},
    **{target: _binary(kind) for target, kind in _PAIRS.items()},
    aten.clamp.default: Rule(only_float32, clamp),
    aten.elu.default: Rule(
        all_of(only_float32, _plain_elu),
        lambda w, n: w.graph.elu(w.value(n.args[0]), float(argument(n, 1, "alpha", 1.0))),
    ),
    aten.gelu.default: Rule(only_float32, gelu),
    aten.hardtanh.default: Rule(only_float32, _of_default(-1.0, 1.0)),
    aten.leaky_relu.default: Rule(
        only_float32,
        lambda w, n: w.graph.leaky_relu(w.value(n.args[0]), float(argument(n, 1, "negative_slope", 0.01))),
    ),
    aten.pow.Tensor_Scalar: Rule(all_of(only_float32, _known_power), power),
    aten.reciprocal.default: Rule(only_float32, lambda w, n: w.graph.binary("Div", w.value(1.0), w.value(n.args[0]))),
    aten.relu.default: Rule(only_float32, lambda w, n: w.graph.clamp(w.value(n.args[0]), 0.0, None)),
    aten.rsub.Scalar: Rule(only_float32, rsub),
    aten.silu.default: Rule(only_float32, silu),
}
