"""Operators that take elements one by one, and sums along axes."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from drawplate.backends.onnx.graph import Name
from drawplate.backends.onnx.rules import Rule, Rules, Writer, axis_of, dtype
from drawplate.canonical.match import argument, aten


def _unary(kind: str) -> Rule:
    return Rule(lambda w, node: w.graph.node(kind, w.cast(node.args[0], dtype(node))))


def _binary(kind: str) -> Rule:
    """In the type of the result."""
    return Rule(lambda w, node: w.graph.node(kind, *(w.cast(x, dtype(node)) for x in node.args[:2])), _not_scaled)


def _not_scaled(node: fx.Node) -> str | None:
    """add and sub may multiply their second operand, div may round."""
    plain = argument(node, 2, "alpha", 1) == 1 and node.kwargs.get("rounding_mode") is None
    return None if plain else "it scales or rounds on the way"


def _not_boolean(node: fx.Node) -> str | None:
    return None if dtype(node) == torch.bool else "it is on the bits of integers"


def _compared(kind: str, *, negated: bool = False) -> Rule:
    """In the type that both operands have together."""

    def write(w: Writer, node: fx.Node) -> Name:
        kinds = [dtype(x) for x in node.args[:2] if isinstance(x, fx.Node)]
        common = torch.promote_types(kinds[0], kinds[-1])
        found = w.graph.node(kind, *(w.cast(x, common) for x in node.args[:2]))
        return w.graph.node("Not", found) if negated else found

    return Rule(write)


def write_cast(w: Writer, node: fx.Node) -> Name:
    """Another type."""
    return w.cast(node.args[0], dtype(node))


def write_silu(w: Writer, node: fx.Node) -> Name:
    """x * sigmoid(x)."""
    x = w.value(node.args[0])
    return w.graph.node("Mul", x, w.graph.node("Sigmoid", x))


def write_gelu(w: Writer, node: fx.Node) -> Name:
    """Exact, or with tanh."""
    return w.graph.node("Gelu", w.value(node.args[0]), approximate=argument(node, 1, "approximate", "none"))


def write_rsqrt(w: Writer, node: fx.Node) -> Name:
    """1 / sqrt(x)."""
    return w.graph.node("Reciprocal", w.graph.node("Sqrt", w.value(node.args[0])))


def write_where(w: Writer, node: fx.Node) -> Name:
    """One of two values, or numbers."""
    condition, *others = node.args
    return w.graph.node("Where", w.value(condition), *(w.cast(x, dtype(node)) for x in others))


def write_clamp(w: Writer, node: fx.Node) -> Name:
    """Limited from below, from above, or both."""
    low, high = argument(node, 1, "min"), argument(node, 2, "max")
    bounds = ["" if x is None else w.cast(x, dtype(node)) for x in (low, high)]
    return w.graph.node("Clip", w.value(node.args[0]), *(bounds if bounds[1] else bounds[:1]))


def _reduced(kind: str) -> Rule:
    """Along some axes."""

    def write(w: Writer, node: fx.Node) -> Name:
        source: Any = node.args[0]
        given: Any = argument(node, 1, "dim")
        axes = w.graph.integers(*(axis_of(source, axis) for axis in given))
        return w.graph.node(kind, w.cast(source, dtype(node)), axes, keepdims=int(argument(node, 2, "keepdim", False)))

    return Rule(write, lambda node: None if argument(node, 1, "dim") else "it is over all axes")


def write_cumsum(w: Writer, node: fx.Node) -> Name:
    """Sums up to each place of an axis."""
    axis = w.graph.constant(torch.tensor(axis_of(node, node.args[1])))
    return w.graph.node("CumSum", w.cast(node.args[0], dtype(node)), axis)


_UNARY = {
    "Cos": aten.cos.default,
    "Sin": aten.sin.default,
    "Tanh": aten.tanh.default,
    "Sigmoid": aten.sigmoid.default,
    "Relu": aten.relu.default,
    "Exp": aten.exp.default,
    "Log": aten.log.default,
    "Sqrt": aten.sqrt.default,
    "Neg": aten.neg.default,
    "Abs": aten.abs.default,
    "Not": aten.logical_not.default,
}
_BINARY = {
    "Add": aten.add.Tensor,
    "Sub": aten.sub.Tensor,
    "Mul": aten.mul.Tensor,
    "Div": aten.div.Tensor,
    "Pow": aten.pow.Tensor_Scalar,
    "Max": aten.maximum.default,
    "Min": aten.minimum.default,
    "And": aten.logical_and.default,
}
_BOOLEAN = {"And": aten.__and__.Tensor, "Or": aten.__or__.Tensor}
_COMPARED = {
    "Equal": (aten.eq.Tensor, aten.eq.Scalar),
    "Less": (aten.lt.Tensor, aten.lt.Scalar),
    "LessOrEqual": (aten.le.Tensor, aten.le.Scalar),
    "Greater": (aten.gt.Tensor, aten.gt.Scalar),
    "GreaterOrEqual": (aten.ge.Tensor, aten.ge.Scalar),
}

POINTWISE: Rules = {
    **{target: _unary(kind) for kind, target in _UNARY.items()},
    **{target: _binary(kind) for kind, target in _BINARY.items()},
    **{target: Rule(_binary(kind).write, _not_boolean) for kind, target in _BOOLEAN.items()},
    **{target: _compared(kind) for kind, targets in _COMPARED.items() for target in targets},
    **{target: _compared("Equal", negated=True) for target in (aten.ne.Tensor, aten.ne.Scalar)},
    aten.to.dtype: Rule(write_cast),
    aten.silu.default: Rule(write_silu),
    aten.gelu.default: Rule(write_gelu),
    aten.rsqrt.default: Rule(write_rsqrt),
    aten.where.self: Rule(write_where),
    aten.where.ScalarOther: Rule(write_where),
    aten.where.ScalarSelf: Rule(write_where),
    aten.where.Scalar: Rule(write_where),
    aten.clamp.default: Rule(write_clamp),
    aten.sum.dim_IntList: _reduced("ReduceSum"),
    aten.mean.dim: _reduced("ReduceMean"),
    aten.amax.default: _reduced("ReduceMax"),
    aten.amin.default: _reduced("ReduceMin"),
    aten.cumsum.default: Rule(write_cumsum),
}
