"""Rotary position embeddings that are written out -> drawplate.rotary(x, cos, sin, interleaved)."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from drawplate.canonical.match import (
    argument,
    aten,
    is_call,
    last_axis,
    operands,
    rank,
    through_casts,
    value,
    width,
)
from drawplate.program import Editor


@dataclass(frozen=True)
class Rotary:
    """x: [b, h, s, d] turned by tables [b or 1, s, d]."""

    x: fx.Node
    cos: fx.Node
    sin: fx.Node
    interleaved: bool


@dataclass(frozen=True)
class Part:
    """x[..., start::step], so many elements of it."""

    x: fx.Node
    start: int
    step: int
    size: int


def rotaries(editor: Editor) -> None:
    """Replace x * cos + turned(x) * sin. Where only part of a head is turned, the slices and the cat around it stay."""
    for node in editor.nodes(aten.add.Tensor):
        found = match_rotary(node)
        if found is None:
            continue
        with editor.graph.inserting_before(node):
            args = (found.x, found.cos, found.sin, found.interleaved)
            new = editor.call(torch.ops.drawplate.rotary.default, *args, like=node)
        new.meta["val"] = node.meta["val"]
        editor.replace(node, new)


def match_rotary(node: fx.Node) -> Rotary | None:
    """x * cos + turned(x) * sin, either way round, the tables spread over the heads."""
    for straight, turned in operands(node):
        if not is_call(straight, aten.mul.Tensor) or not is_call(turned, aten.mul.Tensor):
            continue
        for rotated, sin in operands(turned):
            half = match_turned(rotated)
            for x, cos in operands(straight):
                if half is not None and through_casts(x) is through_casts(half[0]):
                    tables = match_table(cos), match_table(sin)
                    if all(tables) and rank(x) == 4:
                        return Rotary(x, tables[0], tables[1], half[1])  # type: ignore[arg-type]
    return None


def match_turned(node: Any) -> tuple[fx.Node, bool] | None:
    """cat(-x[d/2:], x[:d/2]) -> (x, False); interleave(-x[1::2], x[0::2]) -> (x, True)."""
    if is_call(node, aten.cat.default) and last_axis(node, argument(node, 1, "dim", 0)):
        pair, interleaved = node.args[0], False
    elif is_call(node, aten.flatten.using_ints, aten.reshape.default):
        stacked = node.args[0]
        if not is_call(stacked, aten.stack.default) or not last_axis(stacked, argument(stacked, 1, "dim", 0)):
            return None
        pair, interleaved = stacked.args[0], True
    else:
        return None
    if len(pair) != 2 or not is_call(pair[0], aten.neg.default):
        return None
    second, first = match_part(pair[0].args[0]), match_part(pair[1])
    if second is None or first is None or first.x is not second.x or width(first.x) is None:
        return None
    half = width(first.x) // 2  # type: ignore[operator]
    want = (
        (Part(first.x, 0, 2, half), Part(first.x, 1, 2, half))
        if interleaved
        else (Part(first.x, 0, 1, half), Part(first.x, half, 1, half))
    )
    return (first.x, interleaved) if (first, second) == want else None


def match_part(node: Any) -> Part | None:
    """A slice, or one piece of a chunk or split, along the last axis."""
    if is_call(node, aten.slice.Tensor):
        x, start, step = node.args[0], argument(node, 2, "start", 0) or 0, argument(node, 4, "step", 1)
        size = width(node)
        if size is None or not last_axis(x, argument(node, 1, "dim", 0)) or not isinstance(start, int):
            return None
        return Part(x, start if start >= 0 else start + (width(x) or 0), step, size)
    if is_call(node, operator.getitem) and is_call(node.args[0], aten.chunk.default, aten.split.Tensor):
        pieces, index = node.args[0], node.args[1]
        x, size = pieces.args[0], width(node)
        first = value(pieces)[0].shape[-1] if size is not None else 0
        if size is None or not last_axis(x, argument(pieces, 2, "dim", 0)):
            return None
        return Part(x, index * first, 1, size)
    return None


def match_table(node: Any) -> fx.Node | None:
    """unsqueeze(table [b, s, d], 1) -> table."""
    node = through_casts(node)
    if is_call(node, aten.unsqueeze.default) and node.args[1] in (1, -3) and rank(node.args[0]) == 3:
        return node.args[0]
    return None
