"""The low-rank products that stand beside a program's linears, found by what the graph computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from drawplate.canonical.match import argument, aten, is_call, number, operands, value, weight_behind
from drawplate.program import Program

ENCODE = torch.ops.drawplate.encode.default


@dataclass(frozen=True)
class Place:
    """Where a product is added. linear: W x; inner: A x; outer: B (A x); total: the sum."""

    linear: fx.Node
    inner: fx.Node
    outer: fx.Node
    total: fx.Node


@dataclass(frozen=True)
class Adapter:
    """y = W x + scale * B (A x), for linears that multiply with W (LoRA: Hu et al. 2021, arXiv:2106.09685, eq.
    3).

    base, down, up: names of W [out, in], A [rank, in] and B [out, rank]. A and B may be kept narrower than they
    are read, and what they read may be rounded in front. places: several where linears share W, and A and B.
    """

    base: str
    down: str
    up: str
    scale: float
    rank: int
    places: tuple[Place, ...]


def adapters(program: Program) -> tuple[Adapter, ...]:
    """In the program's order, one for each weight that has one."""
    found: dict[tuple[str, str, str], Adapter] = {}
    for adapter in filter(None, map(_beside, program.nodes(aten.add.Tensor))):
        key = (adapter.base, adapter.down, adapter.up)
        places = (*(found[key].places if key in found else ()), *adapter.places)
        found[key] = replace(adapter, places=places)
    return tuple(found.values())


def _beside(total: fx.Node) -> Adapter | None:
    for linear, product in operands(total):
        outer, scale = _scaled(product)
        if not (_multiplies(linear) and _multiplies_alone(outer)):
            continue
        inner = _in_front(outer.args[0])
        if not _multiplies_alone(inner):
            continue
        (rank, columns), (rows, _) = (value(n.args[1]).shape for n in (inner, outer))
        if _in_front(linear.args[0]) is _in_front(inner.args[0]) and rank <= min(rows, columns):
            base, down, up = (str(weight_behind(n.args[1]).target) for n in (linear, inner, outer))  # type: ignore[union-attr]
            return Adapter(base, down, up, scale, rank, (Place(linear, inner, outer, total),))
    return None


def _scaled(node: Any) -> tuple[Any, float]:
    """What a number multiplies, and the number."""
    if is_call(node, aten.mul.Tensor):
        for factor, other in operands(node):
            if (found := number(factor)) is not None:
                return other, found
    return node, 1.0


def _multiplies(node: Any) -> bool:
    """A linear with a weight of its own."""
    return is_call(node, aten.linear.default) and weight_behind(node.args[1]) is not None


def _multiplies_alone(node: Any) -> bool:
    """Without a bias."""
    return _multiplies(node) and argument(node, 2, "bias") is None


def _in_front(x: Any) -> Any:
    """What is read, before it is rounded."""
    return x.args[0] if is_call(x, ENCODE) else x


def adapter_weights(program: Program) -> Iterator[str]:
    """Names of all A and B."""
    for adapter in adapters(program):
        yield from (adapter.down, adapter.up)
