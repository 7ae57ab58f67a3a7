"""Attention that is written out, softmax(q k^T * scale + mask) v -> aten.scaled_dot_product_attention.

Vaswani et al. 2017, arXiv:1706.03762, eq. 1. Logits that pass through anything else (a soft cap) are left as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from drawplate.canonical.grouped import SDPA
from drawplate.canonical.match import argument, aten, is_call, number, operands, rank, through_casts
from drawplate.program import Editor

PRODUCTS = (aten.matmul.default, aten.bmm.default)


@dataclass(frozen=True)
class Attention:
    """q: [b, h, s, d]; k, v: [b, h, t, d]; mask: additive, or None."""

    q: fx.Node
    k: fx.Node
    v: fx.Node
    mask: fx.Node | None
    scale: float


def attentions(editor: Editor) -> None:
    """Replace every written-out attention over [b, h, s, d]."""
    for node in editor.nodes(aten.matmul.default):
        found = match_attention(node)
        if found is None:
            continue
        with editor.graph.inserting_before(node):
            args = (found.q, found.k, found.v, found.mask, 0.0, False)
            new = editor.call(SDPA, *args, like=node, scale=found.scale, enable_gqa=False)
        new.meta["val"] = node.meta["val"]
        editor.replace(node, new)


def match_attention(node: fx.Node) -> Attention | None:
    """matmul(softmax(logits, -1), v); casts around the softmax do not matter."""
    weights, v = node.args[:2]
    soft = through_casts(weights)
    if not is_call(soft, aten.softmax.int, aten._softmax.default) or rank(node) != 4:  # noqa: SLF001
        return None
    if argument(soft, 1, "dim") not in (-1, 3) or len(soft.users) != 1:
        return None
    logits, mask = _unmasked(through_casts(soft.args[0]))
    product, scale = _unscaled(logits)
    if not is_call(product, aten.matmul.default):
        return None
    q, turned = product.args[:2]
    k = _transposed(turned)
    if k is None or not isinstance(v, fx.Node):
        return None
    q, before = _unscaled(q)
    k, also = _unscaled(k)
    return Attention(q, k, v, mask, scale * before * also)


def _unmasked(node: Any) -> tuple[Any, fx.Node | None]:
    """logits + mask -> (logits, mask): the mask is the side that is not a scaled product."""
    if is_call(node, aten.add.Tensor):
        for logits, mask in operands(node):
            product, _ = _unscaled(logits)
            if is_call(product, aten.matmul.default) and isinstance(mask, fx.Node) and number(mask) is None:
                return logits, mask
    return node, None


def _unscaled(node: Any) -> tuple[Any, float]:
    """x * number or x / number -> (x, factor)."""
    factor = 1.0
    while is_call(node, aten.mul.Tensor, aten.div.Tensor, aten.mul.Scalar, aten.div.Scalar):
        by = number(node.args[1])
        if by is None:
            break
        factor = factor * by if node.target in (aten.mul.Tensor, aten.mul.Scalar) else factor / by
        node = node.args[0]
    return node, factor


def _transposed(node: Any) -> fx.Node | None:
    """x with its last two axes swapped -> x."""
    if is_call(node, aten.transpose.int) and {a % rank(node) for a in node.args[1:3]} == {2, 3}:
        return node.args[0]
    if is_call(node, aten.permute.default) and list(node.args[1]) == [0, 1, 3, 2]:
        return node.args[0]
    return None
