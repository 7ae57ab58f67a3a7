"""Attention with and without a cache, its masks, and what turns its heads by their positions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from drawplate.backends.onnx.graph import Name
from drawplate.backends.onnx.rules import Rule, Rules, Writer
from drawplate.canonical.match import argument, aten, is_call, same_length, value

ours = torch.ops.drawplate
TOTAL, SEEN = "total_sequence_length", "seqlens_k"
"""What GroupQueryAttention asks of lengths: tokens with those that are fed, int32 [], and one less, int32 [1]."""
PAST, PRESENT = "past_key_values.{}.{}", "present.{}.{}"


def write_cached_attention(w: Writer, node: fx.Node) -> Name:
    """GroupQueryAttention: appends keys and values to what was, attends to everything up to each query.

    q [1, h, s, d] -> [1, h, s, d]; the operator has positions in front of heads, and is given them so.
    """
    q, k, _ = (value(x) for x in node.args[:3])  # type: ignore[arg-type]
    number = len(w.rows)
    past = [PAST.format(number, part) for part in ("key", "value")]
    present = [PRESENT.format(number, part) for part in ("key", "value")]
    rows = f"attention.{number}"
    window = int(argument(node, 7, "window", 0))
    w.graph.named(
        [rows, *present],
        "GroupQueryAttention",
        *(_rows(w, x) for x in node.args[:3]),
        *past,
        w.lengths[SEEN],
        w.lengths[TOTAL],
        num_heads=int(q.shape[1]),
        kv_num_heads=int(k.shape[1]),
        scale=float(node.args[6]),  # type: ignore[arg-type]
        **({"local_window_size": window} if window else {}),
    )
    w.rows[node] = rows
    heads = w.graph.reshape(rows, 1, -1, int(q.shape[1]), int(q.shape[3]))
    return w.graph.transpose(heads, 0, 2, 1, 3)


def flat(w: Writer, node: fx.Node) -> Name | None:
    """The rows of an attention [1, s, h * d], if this is a reshape that makes just that of its result."""
    turned: Any = node.args[0]
    if not is_call(turned, aten.transpose.int) or turned.args[0] not in w.rows or set(turned.args[1:]) != {1, 2}:
        return None
    _, heads, _, width = value(turned.args[0]).shape
    shape = value(node).shape
    return w.rows[turned.args[0]] if len(shape) == 3 and shape[-1] == heads * width else None


def _rows(w: Writer, node: Any) -> Name:
    """A value [1, h, s, d] as [1, s, h * d]; what was just turned the other way is not turned back."""
    heads, width = (int(n) for n in (value(node).shape[1], value(node).shape[3]))
    if is_call(node, ours.rotary.default):
        return _rotary(w, node, _rows(w, node.args[0]), num_heads=heads)
    if is_call(node, aten.transpose.int) and set(node.args[1:]) == {1, 2}:
        split = node.args[0]
        if is_call(split, aten.reshape.default) and value(split.args[0]).shape[-1] == heads * width:
            return w.value(split.args[0])
        return w.graph.reshape(w.value(split), 1, -1, heads * width)
    turned = w.graph.transpose(w.value(node), 0, 2, 1, 3)
    return w.graph.reshape(turned, 1, -1, heads * width)


def write_rotary(w: Writer, node: fx.Node) -> Name:
    """x * cos + rotate(x) * sin."""
    return _rotary(w, node, w.value(node.args[0]))


def _rotary(w: Writer, node: fx.Node, x: Name, **layout: int) -> Name:
    interleaved = bool(argument(node, 3, "interleaved", False))
    angles = [_half(w, angle, interleaved) for angle in node.args[1:3]]
    return w.graph.node("RotaryEmbedding", x, *angles, interleaved=int(interleaved), **layout)


def _half(w: Writer, angle: Any, interleaved: bool) -> Name:
    """cos or sin [b, s, d], where each angle stands twice -> [b, s, d / 2]."""
    if (angle, interleaved) not in w.halves:
        half = int(value(angle).shape[-1]) // 2
        bounds = (0, 2 * half, 2, 2) if interleaved else (0, half, 2, 1)
        start, end, axis, step = map(w.graph.integers, bounds)
        w.halves[angle, interleaved] = w.graph.node("Slice", w.value(angle), start, end, axis, step)
    return w.halves[angle, interleaved]


def _rotary_why_not(node: fx.Node) -> str | None:
    x, cos = (value(n) for n in node.args[:2])  # type: ignore[arg-type]
    return None if same_length(x.shape[0], cos.shape[0]) else "its angles are of one row and it turns several"


def write_attention(w: Writer, node: fx.Node) -> Name:
    """ONNX's Attention over a whole text; heads may share keys and values."""
    q, k, v, mask = (argument(node, i, n) for i, n in enumerate(("query", "key", "value", "attn_mask")))
    given: Any = node.kwargs.get("scale")
    scale = 1 / math.sqrt(int(value(q).shape[-1])) if given is None else float(given)
    masks = [] if mask is None else [_square(w, mask, q, k)]
    causal = int(argument(node, 5, "is_causal", False))
    return w.graph.node("Attention", *map(w.value, (q, k, v)), *masks, scale=scale, is_causal=causal)


def _square(w: Writer, mask: fx.Node, q: fx.Node, k: fx.Node) -> Name:
    """A mask with a length for queries and for keys, where it had one of 1 for all."""
    wanted = (value(q).shape[2], value(k).shape[2])
    shape = value(mask).shape
    if len(shape) >= 2 and all(map(same_length, shape[-2:], wanted)):
        return w.value(mask)
    lengths = [w.graph.node("Shape", w.value(x), start=2, end=3) for x in (q, k)]
    return w.graph.node("Expand", w.value(mask), w.graph.node("Concat", *lengths, axis=0))


def _attention_why_not(node: fx.Node) -> str | None:
    if float(argument(node, 4, "dropout_p", 0.0)):
        return "it drops probabilities at random"
    q, k = (value(x) for x in node.args[:2])  # type: ignore[arg-type]
    return None if q.dim() == k.dim() == 4 else "its values have not four axes"


def write_window_mask(w: Writer, node: fx.Node) -> Name:
    """bool [s, s]: may position j be read from i?"""
    length = w.graph.reshape(w.graph.node("Shape", w.value(node.args[0]), start=2, end=3))
    zero, one = (w.graph.constant(torch.tensor(n)) for n in (0, 1))
    place = w.graph.node("Range", zero, length, one)
    column = w.graph.node("Unsqueeze", place, w.graph.integers(1))
    distance = w.graph.node("Sub", column, place)
    near = w.graph.node("Less", distance, w.graph.constant(torch.tensor(node.args[1])))
    return w.graph.node("And", w.graph.node("GreaterOrEqual", distance, zero), near)


ATTENTION: Rules = {
    ours.cached_attention.default: Rule(write_cached_attention),
    ours.rotary.default: Rule(write_rotary, _rotary_why_not),
    ours.window_mask.default: Rule(write_window_mask),
    aten.scaled_dot_product_attention.default: Rule(write_attention, _attention_why_not),
}
