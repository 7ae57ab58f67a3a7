"""The form of a program that is cut into regions: slices for splits, positions before heads, rotations written out.

A decoder is written over [b, heads, s, d], the runtime's attention wants [b, s, heads, d]. Transposes are moved down
until they meet the one that turns them back; what is left of them is real work.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

import drawplate.backends.xnnpack.ops  # noqa: F401  (registers drawplate_xnnpack::)
from drawplate.backends.xnnpack.kinds import BINARY, MAX, NORMS, UNARY
from drawplate.canonical.match import argument, aten, is_call, rank, value
from drawplate.ops import CACHED_ATTENTION
from drawplate.program import Editor, Program

Swap = tuple[int, int]
SDPA = aten.scaled_dot_product_attention.default
LOW = float(torch.finfo(torch.float32).min) / 2
ours, local = torch.ops.drawplate, torch.ops.drawplate_xnnpack


def form(program: Program) -> Program:
    """The same function in the form that regions are cut from. Not canonical any more: for emitting only."""
    editor = program.edit()
    tools = Tools(editor)
    for step in (tools.pieces, tools.last_positions, tools.attentions, tools.whole_attentions, tools.sink):
        step()
    return editor.finish()


class Tools:
    """The rewrites, over one editor. New nodes get their `meta["val"]` at once, since later steps ask for it."""

    def __init__(self, editor: Editor) -> None:
        self._editor = editor
        self._masks: dict[fx.Node, fx.Node] = {}
        self._tables: dict[tuple[fx.Node, int, bool], fx.Node] = {}

    def call(self, target: Callable[..., Any], *args: Any, like: fx.Node) -> fx.Node:
        """A typed call at the insertion point."""
        node = self._editor.call(target, *args, like=like)
        known = fx.node.map_arg(args, lambda n: n.meta["val"])
        node.meta["val"] = target(*known)
        return node

    def swapped(self, x: fx.Node, swap: Swap, like: fx.Node) -> fx.Node:
        """x with two axes swapped; if x is such a swap itself, what it swapped."""
        if swap_of(x) == swap:
            return x.args[0]  # type: ignore[return-value]
        return self.call(aten.transpose.int, x, *swap, like=like)

    def pieces(self) -> None:
        """split and chunk -> one slice per piece."""
        for node in self._editor.nodes(aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default):
            axis = argument(node, 2, "dim", 0) % rank(node.args[0])  # type: ignore[arg-type]
            start = 0
            for i, piece in enumerate(value(node)):
                end = start + piece.shape[axis]
                for reader in [u for u in node.users if is_call(u, operator.getitem) and u.args[1] == i]:
                    with self._editor.graph.inserting_before(reader):
                        new = self.call(aten.slice.Tensor, node.args[0], axis, start, end, like=reader)
                    self._editor.replace(reader, new)
                start = end

    def last_positions(self) -> None:
        """drawplate.last_position(x) -> x[:, -1:]."""
        for node in self._editor.nodes(ours.last_position.default):
            with self._editor.graph.inserting_before(node):
                new = self.call(aten.slice.Tensor, node.args[0], 1, -1, MAX, like=node)
            self._editor.replace(node, new)

    def attentions(self) -> None:
        """drawplate.cached_attention over [1, h, s, d] -> drawplate_xnnpack.attention over [1, s, h, d]."""
        for node in self._editor.nodes(*CACHED_ATTENTION):
            window, (q, k, v) = argument(node, 7, "window", 0), node.args[:3]
            encoded = node.target is ours.cached_attention.encoded
            kernel = local.attention.encoded if encoded else local.attention.default
            operands = (q.args[0] if encoded else q, k, v)  # type: ignore[union-attr]
            with self._editor.graph.inserting_before(node):
                rows_of = (self.swapped(x, (1, 2), node) for x in operands)  # type: ignore[arg-type]
                rows = self.call(kernel, *rows_of, *node.args[3:7], window, *node.args[8:], like=node)
                new = self.call(aten.transpose.int, rows, 1, 2, like=node)
            self._editor.replace(node, new)

    def whole_attentions(self) -> None:
        """Attention without a cache, of as many key heads as query heads -> products and a softmax."""
        for node in self._editor.nodes(SDPA):
            q, k, v, mask, dropout, causal = node.args
            known = value(q).dtype == torch.float32 and isinstance(mask, fx.Node | None)  # type: ignore[arg-type]
            if causal or dropout or node.kwargs.get("enable_gqa") or not known:
                continue
            with self._editor.graph.inserting_before(node):
                scaled = self.call(aten.mul.Tensor, q, float(node.kwargs["scale"]), like=node)  # type: ignore[arg-type]
                turned = self.call(aten.transpose.int, k, 2, 3, like=node)
                logits = self.call(aten.matmul.default, scaled, turned, like=node)
                if mask is not None:
                    logits = self.call(aten.add.Tensor, logits, self.additive(mask, node), like=node)  # type: ignore[arg-type]
                shares = self.call(aten.softmax.int, logits, -1, like=node)
                new = self.call(aten.matmul.default, shares, v, like=node)
            self._editor.replace(node, new)

    def additive(self, mask: fx.Node, like: fx.Node) -> fx.Node:
        """A bool mask as numbers to add: 0 where it is True, and where it is not one so low that exp gives 0."""
        if value(mask).dtype != torch.bool:
            return mask
        if mask not in self._masks:
            closed = self.call(aten.logical_not.default, mask, like=like)
            number = self.call(aten.to.dtype, closed, torch.float32, like=like)
            self._masks[mask] = self.call(aten.mul.Tensor, number, LOW, like=like)
        return self._masks[mask]

    def sink(self) -> None:
        """Move transposes down, and write rotations out on whichever layout reaches them."""
        for node in self._editor.nodes():
            if not node.users or node.target is aten.sym_size.int:
                continue
            swap = common_swap(node)
            with self._editor.graph.inserting_before(node):
                new = self.rotated(node, swap) if node.target is ours.rotary.default else self.sunk(node, swap)
            if new is not None:
                self._editor.replace(node, new)

    def sunk(self, node: fx.Node, swap: Swap | None) -> fx.Node | None:
        """node(swap(x)) -> swap(node'(x)), where that is the same; a swap of a swap -> x."""
        if swap is None:
            return None
        if swap_of(node) == swap:
            return node.args[0].args[0]  # type: ignore[union-attr,return-value]
        if node.target is aten.transpose.int:
            return None
        if node.target in NORMS and (len(node.args[1]) != 1 or rank(node) - 1 in swap):  # type: ignore[arg-type]
            return None
        if node.target in ROW_WISE and rank(node) - 1 in swap:
            return None
        args = list(node.args)
        if node.target is aten.slice.Tensor:
            args[1] = across(argument(node, 1, "dim", 0) % rank(node), swap)
            args[0] = args[0].args[0]  # type: ignore[union-attr]
        elif node.target is aten.cat.default:
            args = [[x.args[0] for x in args[0]], across(argument(node, 1, "dim", 0) % rank(node), swap)]  # type: ignore[union-attr]
        else:
            args = [x.args[0] if isinstance(x, fx.Node) and swap_of(x) == swap else x for x in args]
        new = self.call(node.target, *args, like=node)  # type: ignore[arg-type]
        if node.kwargs:
            new.kwargs = node.kwargs
        return self.call(aten.transpose.int, new, *swap, like=node)

    def rotated(self, node: fx.Node, swap: Swap | None) -> fx.Node:
        """drawplate.rotary as slices, products and a cat: over [b, s, h, d] where x is a swap of that.

        The tables stay computed from the positions, once per step: a stored table of 512 positions would save 1 us of
        a token's 7 ms and 43 us of a 64-token prompt's 50 ms, for 131 KB of file.
        """
        x, cos, sin, interleaved = (*node.args, False)[:4]
        heads = 1
        if swap == (1, 2):
            x, heads = x.args[0], 2  # type: ignore[union-attr]
        width = value(x).shape[-1]  # type: ignore[arg-type]
        c = self.table(cos, heads, bool(interleaved))  # type: ignore[arg-type]
        s = self.table(sin, heads, bool(interleaved))  # type: ignore[arg-type]
        if interleaved:
            pairs = self.call(aten.unflatten.int, x, 3, [width // 2, 2], like=node)
            a, b = (self.call(aten.slice.Tensor, pairs, 4, i, i + 1, like=node) for i in (0, 1))
        else:
            a, b = (self.call(aten.slice.Tensor, x, 3, i, i + width // 2, like=node) for i in (0, width // 2))
        ac, bs, bc, as_ = (self.call(aten.mul.Tensor, *pair, like=node) for pair in ((a, c), (b, s), (b, c), (a, s)))
        first = self.call(aten.sub.Tensor, ac, bs, like=node)
        second = self.call(aten.add.Tensor, bc, as_, like=node)
        out = self.call(aten.cat.default, [first, second], 4 if interleaved else 3, like=node)
        if interleaved:
            out = self.call(aten.flatten.using_ints, out, 3, 4, like=node)
        return out if heads == 1 else self.call(aten.transpose.int, out, 1, 2, like=node)

    def table(self, table: fx.Node, heads: int, interleaved: bool) -> fx.Node:
        """cos or sin [b, s, d], each angle twice -> each once, [b, 1, s, d/2] or [b, s, 1, d/2] (or [.., d/2, 1])."""
        key = (table, heads, interleaved)
        if key not in self._tables:
            width = value(table).shape[-1]
            after = table
            steps: list[tuple[Any, ...]] = [
                (aten.slice.Tensor, 2, 0, MAX, 2) if interleaved else (aten.slice.Tensor, 2, 0, width // 2),
                (aten.unsqueeze.default, heads),
            ]
            steps += [(aten.unsqueeze.default, 4)] if interleaved else []
            for target, *args in steps:
                with self._editor.graph.inserting_after(after):
                    after = self.call(target, after, *args, like=table)
            self._tables[key] = after
        return self._tables[key]


ROW_WISE = (*NORMS, ours.encode.default, ours.hadamard.default, aten.softmax.int, aten._softmax.default)  # noqa: SLF001


def swap_of(node: Any) -> Swap | None:
    """The two axes that a transpose swaps, in order; None for any other node."""
    if not is_call(node, aten.transpose.int):
        return None
    a, b = (axis % rank(node) for axis in node.args[1:3])
    return (min(a, b), max(a, b))


def common_swap(node: fx.Node) -> Swap | None:
    """The swap that all of a node's large operands went through, if the node may be moved in front of it."""
    if node.target is aten.cat.default:
        swaps = {swap_of(x) for x in node.args[0]}  # type: ignore[union-attr]
        return swaps.pop() if len(swaps) == 1 else None
    if not node.args or not isinstance(node.args[0], fx.Node):
        return None
    if node.target in BINARY:
        found = {swap_of(x) for x in node.args[:2] if isinstance(x, fx.Node)}
        swaps = found - {None}
        if len(swaps) != 1:
            return None
        (swap,) = swaps
        return swap if all(fits(x, swap, rank(node)) for x in node.args[:2]) else None
    movable = node.target in UNARY or node.target in (
        *ROW_WISE,
        aten.transpose.int,
        aten.slice.Tensor,
        ours.rotary.default,
    )
    return swap_of(node.args[0]) if movable else None


def fits(x: Any, swap: Swap | None, axes: int) -> bool:
    """Is this operand swapped too, or too small to notice?"""
    if not isinstance(x, fx.Node) or swap is None:
        return True
    if swap_of(x) == swap:
        return True
    shape = value(x).shape
    return all(axis - (axes - len(shape)) < 0 or shape[axis - (axes - len(shape))] == 1 for axis in swap)


def across(axis: int, swap: Swap) -> int:
    """Where an axis is on the other side of a swap."""
    return {swap[0]: swap[1], swap[1]: swap[0]}.get(axis, axis)
