"""RMS and layer norms that are written out -> aten.rms_norm and aten.layer_norm.

RMS norm (Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4): x / sqrt(mean(x^2) + eps) * w.
Layer norm (Ba et al. 2016, arXiv:1607.06450): the same of x - mean(x), with a bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from drawplate.canonical.match import (
    argument,
    aten,
    first,
    is_call,
    last_axis,
    number,
    operands,
    through_casts,
    value,
    width,
)
from drawplate.program import Editor


@dataclass(frozen=True)
class Norm:
    """x / sqrt(mean(x^2) + eps) over the last axis; centred: of x - mean(x)."""

    x: fx.Node
    eps: float
    centred: bool


def norms(editor: Editor) -> None:
    """Replace every written-out norm, together with the weight and the bias that follow it if these are vectors."""
    for node in editor.nodes(aten.mul.Tensor, aten.div.Tensor):
        found = match_norm(node)
        if found is None:
            continue
        last, weight = _followed(node, aten.mul.Tensor, width(found.x))
        last, bias = _followed(last, aten.add.Tensor, width(found.x)) if found.centred else (last, None)
        x, last = narrowest(found.x, last, weight)
        with editor.graph.inserting_after(last):
            new = _call(editor, last, Norm(x, found.eps, found.centred), weight, bias)
        new.meta["val"] = last.meta["val"]
        last.replace_all_uses_with(new)
    for node in editor.nodes(aten.layer_norm.default, aten.rms_norm.default):
        spell_out(node)


def spell_out(node: fx.Node) -> None:
    """All arguments by position, eps a number: (x, shape, weight, bias, eps) or (x, shape, weight, eps)."""
    if is_call(node, aten.layer_norm.default):
        bias, eps = argument(node, 3, "bias"), argument(node, 4, "eps", 1e-5)
        node.args = (*node.args[:2], argument(node, 2, "weight"), bias, eps)
    else:
        eps = argument(node, 3, "eps")
        eps = torch.finfo(value(node).dtype).eps if eps is None else eps
        node.args = (*node.args[:2], argument(node, 2, "weight"), eps)
    node.kwargs = {}


def narrowest(x: fx.Node, last: fx.Node, weight: fx.Node | None) -> tuple[fx.Node, fx.Node]:
    """Input and output without the casts to a wider type around a norm, if the weight is not in the wider type."""
    inner, outer = through_casts(x), _uncast(last)
    kinds = {value(n).dtype for n in (inner, outer, weight) if n is not None}
    return (inner, outer) if len(kinds) == 1 else (x, last)


def match_norm(node: fx.Node) -> Norm | None:
    """x * rsqrt(mean(x^2) + eps), x / sqrt(.), or x * (.) ** -0.5; casts in between do not matter."""
    if is_call(node, aten.div.Tensor):
        eps = _root(node.args[1], node.args[0], inverse=False)
        return _norm(first(node), eps) if eps is not None else None
    for x, inverse in operands(node):
        eps = _root(inverse, x, inverse=True)
        if eps is not None:
            return _norm(x, eps)
    return None


def match_mean_square(node: Any, x: fx.Node) -> bool:
    """mean(x^2, [-1], keepdim=True)?"""
    node = through_casts(node)
    if not is_call(node, aten.mean.dim) or not argument(node, 2, "keepdim", False):
        return False
    axes, square = node.args[1], through_casts(node.args[0])
    if not isinstance(axes, (list, tuple)) or len(axes) != 1 or not last_axis(x, axes[0]):
        return False
    if is_call(square, aten.pow.Tensor_Scalar):
        return number(square.args[1]) == 2 and through_casts(square.args[0]) is through_casts(x)
    if is_call(square, aten.mul.Tensor):
        return all(through_casts(a) is through_casts(x) for a in square.args[:2])
    return is_call(square, aten.square.default) and through_casts(square.args[0]) is through_casts(x)


def match_centred(node: Any) -> fx.Node | None:
    """x - mean(x, [-1], keepdim=True) -> x."""
    if not is_call(node, aten.sub.Tensor):
        return None
    x, mean = node.args[0], through_casts(node.args[1])
    if not is_call(mean, aten.mean.dim) or not argument(mean, 2, "keepdim", False):
        return None
    axes = mean.args[1]
    ours = through_casts(mean.args[0]) is through_casts(x) and len(axes) == 1 and last_axis(x, axes[0])
    return x if ours else None


def _root(node: Any, x: Any, *, inverse: bool) -> float | None:
    """eps of (mean(x^2) + eps) ** (-1/2 if inverse else 1/2), or None."""
    node = through_casts(node)
    if is_call(node, aten.rsqrt.default if inverse else aten.sqrt.default) or (
        is_call(node, aten.pow.Tensor_Scalar) and number(node.args[1]) == (-0.5 if inverse else 0.5)
    ):
        inner = node.args[0]
    elif inverse and is_call(node, aten.reciprocal.default):
        return _root(node.args[0], x, inverse=False)
    else:
        return None
    if not isinstance(x, fx.Node) or not is_call(inner, aten.add.Tensor, aten.add.Scalar):
        return None
    eps = number(inner.args[1])
    return eps if eps is not None and match_mean_square(inner.args[0], x) else None


def _norm(x: fx.Node, eps: float) -> Norm:
    before = match_centred(x)
    return Norm(x, eps, False) if before is None else Norm(before, eps, True)


def _followed(node: fx.Node, target: Any, n: int | None) -> tuple[fx.Node, fx.Node | None]:
    """The call of target with a vector [n] that is the only reader of node, and the vector; else (node, None)."""
    reader = _only_reader(node)
    if not is_call(reader, target) or len(reader.args) < 2:
        return node, None
    for a, b in operands(reader):
        if through_casts(a) is through_casts(node) and is_vector(b, n):
            return reader, b
    return node, None


def is_vector(node: Any, n: int | None) -> bool:
    """Is it a weight of shape [n]?"""
    return isinstance(node, fx.Node) and node.op == "get_attr" and tuple(value(node).shape) == (n,)


def _only_reader(node: fx.Node) -> Any:
    """The one node that reads this one, looking through casts; None if there are more."""
    while len(node.users) == 1:
        (reader,) = node.users
        if through_casts(reader) is not through_casts(node):
            return reader
        node = reader
    return None


def _uncast(node: fx.Node) -> fx.Node:
    """The cast after node if that is its only reader: a norm that computed in float32 ends in its input's type."""
    reader = next(iter(node.users)) if len(node.users) == 1 else None
    return reader if reader is not None and through_casts(reader) is node else node


def _call(editor: Editor, like: fx.Node, norm: Norm, weight: fx.Node | None, bias: fx.Node | None) -> fx.Node:
    shape = [width(norm.x)]
    if norm.centred:
        return editor.call(aten.layer_norm.default, norm.x, shape, weight, bias, norm.eps, like=like)
    args = (norm.x, shape, weight, norm.eps)
    return editor.call(aten.rms_norm.default, *args, like=like)
