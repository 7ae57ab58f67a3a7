"""The blocks that a program is a chain of, and which of them are alike.

A cut point is a value that every path from the embedding to the head goes through: a dominator of the head (Lengauer
and Tarjan 1979). Between two cut points lies a segment, such as one residual branch. The run of segments that repeats
most, judged by the weights they read, gives the blocks: a layer is a block without anything being called a layer.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import networkx as nx
import torch
from torch import fx

from drawplate.analysis.sites import head_nodes, looks_up_tokens, output_values
from drawplate.canonical.match import aten, weight_behind
from drawplate.program import Program

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Block:
    """A part of a program with one value in and one value out.

    name: what its nodes' modules have in common. kind: blocks of one kind differ in their weights' contents only.
    input: the value that goes in, not part of the block. output: its last node. nodes: in the program's order, with the
    get_attr nodes of its weights; what does not depend on the input value, such as rotary tables, is in no block.
    """

    name: str
    kind: int
    input: fx.Node
    output: fx.Node
    nodes: tuple[fx.Node, ...]

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the weights and state tensors that it reads."""
        return tuple(dict.fromkeys(str(n.target) for n in self.nodes if n.op == "get_attr"))


def blocks(program: Program) -> tuple[Block, ...]:
    """The chain from the embedding's value (else the input's) to the head's input (else the output); empty if there is
    no single value in between."""
    cuts = cut_points(program)
    segments = [(a, b, between(program, a, b)) for a, b in pairwise(cuts)]
    segments = _trimmed(program, segments)
    kinds: dict[Hashable, int] = {}
    found = []
    for group in grouped([weights_read(program, nodes) for _, _, nodes in segments]):
        part = [segments[i] for i in group]
        inside = {n for _, _, nodes in part for n in nodes}
        nodes = tuple(n for n in program.graph.nodes if n in inside)
        kind = kinds.setdefault(structure(program, nodes), len(kinds))
        found.append(Block(_name(nodes), kind, part[0][0], part[-1][1], nodes))
    return tuple(found)


def cut_points(program: Program) -> list[fx.Node]:
    """Values that every path from the embedding to the head goes through, both ends included, in order."""
    starts = [n for n in program.nodes(aten.embedding.default) if looks_up_tokens(n)]
    starts = starts or [n for n in program.graph.nodes if n.op == "placeholder" and n.meta["val"].is_floating_point()]
    heads = head_nodes(program)
    ends = {n.args[0] for n in heads} if heads else set(output_values(program))
    if len(starts) != 1 or len(ends) != 1:
        return []
    (start,), (end,) = starts, ends
    flow: nx.DiGraph[fx.Node] = nx.DiGraph()
    flow.add_node(start)
    for node in program.graph.nodes:
        if node is start or (node.op == "call_function" and isinstance(node.meta["val"], (torch.Tensor, tuple, list))):
            flow.add_edges_from(
                (source, node) for source in node.all_input_nodes if source in flow and node is not start
            )
    if end not in flow:
        return []
    parents = nx.immediate_dominators(flow, start)
    chain: list[Any] = [end]
    while chain[-1] is not start:
        chain.append(parents[chain[-1]])
    return [n for n in reversed(chain) if isinstance(n, fx.Node)]


def between(program: Program, start: fx.Node, end: fx.Node) -> frozenset[fx.Node]:
    """The nodes that compute `end` from `start`, end included, and the weights that only they read, cast or not."""
    after, inside = {start}, set()
    for node in program.graph.nodes:
        if any(n in after for n in node.all_input_nodes):
            after.add(node)
    todo = [end]
    while todo:
        node = todo.pop()
        if node in after and node is not start and node not in inside:
            inside.add(node)
            todo += node.all_input_nodes
    for node in reversed(program.graph.nodes):
        if node.users and weight_behind(node) is not None and all(u in inside for u in node.users):
            inside.add(node)
    return frozenset(inside)


def grouped(segments: Sequence[Hashable]) -> list[list[int]]:
    """Indices of segments, grouped by the repetition that covers most of them; what is outside stays single.

    >>> grouped(["p", "a", "m", "a", "m", "n"])
    [[0], [1, 2], [3, 4], [5]]
    """
    n = len(segments)
    best = (0, 0, 0)  # covered, -period, start: of two that cover as much, what stands alone stands in front
    for period in range(1, n // 2 + 1):
        for start in range(n - 2 * period + 1):
            unit, repeats = list(segments[start : start + period]), 1
            while list(segments[start + repeats * period : start + (repeats + 1) * period]) == unit:
                repeats += 1
            if repeats > 1:
                best = max(best, (repeats * period, -period, start))
    covered, period, start = best[0], -best[1], best[2]
    single = [[i] for i in range(start)]
    runs = [list(range(start + i, start + i + period)) for i in range(0, covered, period or 1)]
    return single + runs + [[i] for i in range(start + covered, n)]


def weights_read(program: Program, nodes: frozenset[fx.Node]) -> Hashable:
    """Which operations read weights, and their shapes, numbers aside: what makes two segments alike."""
    read = [
        (str(n.target), tuple(_shape(i) for i in n.all_input_nodes if i.op == "get_attr" and _shape(i)))
        for n in program.graph.nodes
        if n in nodes
    ]
    return tuple((target, shapes) for target, shapes in read if shapes)


def structure(program: Program, nodes: Sequence[fx.Node]) -> Hashable:
    """Equal for two blocks that compute the same with other weights: operations, arguments and wiring."""
    index = {n: i for i, n in enumerate(nodes)}
    outside: dict[fx.Node, int] = {}

    def place(node: fx.Node) -> Hashable:
        if node in index:
            return ("inside", index[node])
        return ("outside", outside.setdefault(node, len(outside)))

    def plain(value: Any) -> Hashable:
        if isinstance(value, fx.Node):
            return place(value)
        if isinstance(value, (list, tuple)):
            return tuple(plain(v) for v in value)
        return repr(value)

    return tuple(
        ("weight", _shape(n))
        if n.op == "get_attr"
        else (str(n.target), plain(n.args), plain(sorted(n.kwargs.items(), key=lambda item: item[0])))
        for n in nodes
    )


def _trimmed(program: Program, segments: list[Any]) -> list[Any]:
    """Without the segments at both ends that read no weights: a scaled embedding is still the embedding."""
    reads = [bool(weights_read(program, nodes)) for _, _, nodes in segments]
    if not any(reads):
        return []
    return segments[reads.index(True) : len(reads) - reads[::-1].index(True)]


def _shape(node: fx.Node) -> Shape:
    return tuple(node.meta["val"].shape)


def _name(nodes: Sequence[fx.Node]) -> str:
    """What the modules of its nodes have in common, else the module of its first weight."""
    sites = [n.meta["site"].split(".") for n in nodes if n.meta.get("site")]
    common: list[str] = []
    for parts in zip(*sites, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    weight = next((str(n.target).rpartition(".")[0] for n in nodes if n.op == "get_attr"), nodes[-1].name)
    return ".".join(common) or weight
