"""Cutting a program into the regions that XNNPACK runs and the operators between them. Found on the graph.

A node's stage is the number of times that a path to it enters a region. Nodes of one stage make one region: no path
leaves it and comes back (it would come back in a later stage), and no larger region is possible.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from drawplate.backends.xnnpack.lower_ops import RULES, moves_only, why_not
from drawplate.backends.xnnpack.ops import Shapes
from drawplate.backends.xnnpack.rules import Writer, is_fixed, lengths
from drawplate.backends.xnnpack.serialise import GroupScales, XnnGraph
from drawplate.canonical.match import aten, expression, value
from drawplate.errors import BackendError
from drawplate.program import Program

TABLE_READS = (aten.embedding.default,)


@dataclass(frozen=True)
class Region:
    """nodes in order; inputs: nodes outside whose values it reads; outputs: its nodes that are read outside."""

    key: str
    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]


@dataclass(frozen=True)
class Plan:
    """order: what the outer program does, region by region and node by node. outside: nodes that XNNPACK does not run,
    with the reason; nodes that compute with positions alone are not among them but in `positional`."""

    order: tuple[Region | fx.Node, ...]
    outside: Mapping[fx.Node, str]
    positional: frozenset[fx.Node]

    @property
    def regions(self) -> tuple[Region, ...]:
        """In the order in which they run."""
        return tuple(step for step in self.order if isinstance(step, Region))


def partition(program: Program) -> Plan:
    """The plan of a program in `form`. The same program gives the same plan."""
    live = activations(program)
    reasons: dict[fx.Node, str] = {}
    able: set[fx.Node] = set()
    for node in program.nodes():
        if node not in live:
            continue
        reason = why_not(node, program.weights)
        if reason is None:
            able.add(node)
        else:
            reasons[node] = reason
    while True:
        stages = staged(program, able)
        groups: dict[int, list[fx.Node]] = {}
        for node in program.nodes():
            if node in able:
                groups.setdefault(stages[node], []).append(node)
        idle = [node for nodes in groups.values() if all(map(moves_only, nodes)) for node in nodes]
        if not idle:
            break
        able.difference_update(idle)
        reasons.update(dict.fromkeys(idle, "it moves data between operators that XNNPACK does not run"))
    regions = {stage: _region(f"region_{i}", groups[stage]) for i, stage in enumerate(sorted(groups))}
    order: list[Region | fx.Node] = []
    for stage in range(max(stages.values(), default=0) + 1):
        order += [regions[stage]] if stage in regions else []
        order += [n for n in program.graph.nodes if n not in able and stages[n] == stage and n.op != "output"]
    positional = frozenset(n for n in program.nodes() if n not in live)
    return Plan(tuple(order), reasons, positional)


def activations(program: Program) -> set[fx.Node]:
    """Nodes whose values depend on a table read by ids or on a floating-point input: all but arithmetic on positions,
    masks and lengths, which is done once, for a few numbers."""
    found: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op == "placeholder":
            known = node.meta["val"].dtype.is_floating_point
        elif node.op == "call_function":
            known = any(n in found for n in node.all_input_nodes) and node.target is not aten.sym_size.int
            known = known or node.target in TABLE_READS
        else:
            known = False
        if known:
            found.add(node)
    return found


def staged(program: Program, able: set[fx.Node]) -> dict[fx.Node, int]:
    """Every node's stage."""
    stages: dict[fx.Node, int] = {}
    for node in program.graph.nodes:
        enter = node in able
        stages[node] = max((stages[x] + (enter and x not in able) for x in node.all_input_nodes), default=int(enter))
    return stages


def _region(key: str, nodes: Sequence[fx.Node]) -> Region:
    inside = set(nodes)
    inputs: dict[fx.Node, None] = {}
    for node in nodes:
        for x in node.all_input_nodes:
            if x not in inside and x.op != "get_attr" and isinstance(x.meta["val"], Tensor):
                inputs[x] = None
    outputs = tuple(n for n in nodes if any(u not in inside for u in n.users))
    return Region(key, tuple(nodes), tuple(inputs), outputs)


def write(region: Region, program: Program, group_scales: GroupScales = "bf16") -> XnnGraph:
    """The region in XNNPACK's words."""
    writer = Writer(XnnGraph(group_scales), program.weights)
    for node in region.inputs:
        writer.values[node] = writer.graph.input(lengths(node))
    for node in region.nodes:
        writer.values[node] = RULES[node.target].write(writer, node)
    for node in region.outputs:
        writer.graph.output(writer.values[node])
    return writer.graph


def shapes(region: Region) -> Shapes:
    """How the shapes of a region's results follow from its inputs, without running anything.

    Raises BackendError where a length cannot be told from the inputs' lengths.
    """
    axes: dict[Any, tuple[int, int]] = {}
    for i, node in enumerate(region.inputs):
        for axis, length in enumerate(value(node).shape):
            if not is_fixed(length):
                axes.setdefault(expression(length), (i, axis))
    known = [[_length(n, axes, node) for n in value(node).shape] for node in region.outputs]

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        return [
            torch.empty([n if isinstance(n, int) else n(inputs) for n in shape], dtype=torch.float32) for shape in known
        ]

    return run


def _length(length: Any, axes: Mapping[Any, tuple[int, int]], node: fx.Node) -> int | Callable[[Sequence[Tensor]], Any]:
    if isinstance(length, int):
        return length
    wanted = expression(length)
    if wanted in axes:
        i, axis = axes[wanted]
        return lambda inputs: inputs[i].shape[axis]
    symbols = sorted(wanted.free_symbols, key=str)
    if not all(s in axes for s in symbols):
        raise BackendError(
            f"the length {wanted} of a value cannot be told when it runs",
            where=str(node.meta.get("site") or node.name),
            why="a delegate's results have lengths that follow from its inputs' lengths",
            fix="report this model",
        )
    formula = sympy.lambdify(symbols, wanted, modules=[{}, "math"])
    return lambda inputs: formula(*(inputs[axes[s][0]].shape[axes[s][1]] for s in symbols))
