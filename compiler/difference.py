"""Where two programs that should compute the same begin to differ: for the message of a failed comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from drawplate.probing import Watch, run
from drawplate.program import Program
from drawplate.textual.words import operator_name

aten = torch.ops.aten

Key = tuple[str, str, str]  # name, site and operator: what a node keeps when a program is edited
_ANCHORS = (aten.linear.default, aten.embedding.default, aten.scaled_dot_product_attention.default)
"""What gives the same up to an orthogonal change of basis, whatever was folded into it or turned in front of it."""


def first_difference(
    before: Program, after: Program, feed: Callable[[Program], Sequence[Tensor]], dtype: torch.dtype, bound: float
) -> str:
    """The first value, in the order of `before`, whose rows are of other lengths in `after`; empty if none is.

    Passes may turn channels, so values are compared by what no rotation changes: the length of each row; a row may
    also have lost its mean. Values behind a norm whose weight went away, or behind anything that was put in, are left
    out up to the next linear. feed: the inputs of a program. bound: relative to the usual length of a row.
    """
    expected: dict[Key, tuple[Tensor, ...]] = {}
    given: dict[Key, tuple[Tensor, ...]] = {}
    run(before, feed(before), dtype=dtype, watch=_into(expected))
    run(after, feed(after), dtype=dtype, watch=_into(given))
    nodes = {_key(n): n for n in after.nodes()}
    moved = _moved(before, nodes)
    for node in before.nodes():
        key = _key(node)
        if key in given and key in expected and nodes[key] not in moved:
            error = min(_distance(lengths, given[key][0]) for lengths in expected[key])
            if not error <= bound:
                return f"the first value that differs is {_told(node)}, by {error:.3g}"
    return ""


def _into(found: dict[Key, tuple[Tensor, ...]]) -> Watch:
    """Keeps of each value the lengths of its rows, as they are and without their mean."""

    def watch(node: fx.Node, _: tuple[Any, ...], value: Any) -> None:
        if isinstance(value, Tensor) and value.dim() and value.is_floating_point() and value.numel():
            x = value.double()
            found[_key(node)] = (x.norm(dim=-1), (x - x.mean(-1, keepdim=True)).norm(dim=-1))

    return watch


def _moved(before: Program, nodes: dict[Key, fx.Node]) -> set[fx.Node]:
    """The nodes of the program after whose values may differ by more than a change of basis."""
    arguments = {_key(n): _inputs(n) for n in before.nodes()}
    moved: set[fx.Node] = set()
    for key, node in nodes.items():
        other = arguments.get(key) != _inputs(node) or any(n in moved for n in node.all_input_nodes)
        if other and node.target not in _ANCHORS:
            moved.add(node)
    return moved


def _inputs(node: fx.Node) -> list[str]:
    """What a node reads: weights by their own names."""
    return [str(n.target) if n.op == "get_attr" else n.name for n in node.all_input_nodes]


def _key(node: fx.Node) -> Key:
    return node.name, str(node.meta.get("site") or ""), str(node.target)


def _distance(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return 0.0  # one of them is of some positions only: nothing can be said
    usual = a.square().mean().sqrt().clamp(min=1e-300)
    return float((a - b).abs().max() / usual)


def _told(node: fx.Node) -> str:
    weights = [str(n.target) for n in node.all_input_nodes if n.op == "get_attr"]
    place = str(node.meta.get("site") or (weights[0] if weights else node.name))
    source = f" [{node.meta['source']}]" if node.meta.get("source") else ""
    return f"{place} ({operator_name(node.target)}){source}"
