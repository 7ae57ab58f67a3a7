"""Which weights a program multiplies by, and as what: read off the graph, never off names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx

from drawplate.canonical.masks import POSITIONS
from drawplate.canonical.match import CASTS, aten, is_call
from drawplate.program import Program

Role = Literal["embedding", "head", "linear", "tied"]

_LINEAR = aten.linear.default
_EMBEDDING = aten.embedding.default
# What may stand between the head and the output: one value in, one value out, element by element or a view.
_UNARY = (
    *CASTS,
    aten.reshape.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.tanh.default,
    aten.softmax.int,
    aten.log_softmax.int,
    torch.ops.drawplate.last_position.default,
)


@dataclass(frozen=True)
class Site:
    """A weight matrix [out, in] (a table: [rows, width]) and every node that looks up or multiplies with it.

    name: the weight's. module: where the model has it. macs_per_token: multiply-adds for one row of input (lookup: 0).
    """

    name: str
    role: Role
    nodes: tuple[fx.Node, ...]
    shape: tuple[int, ...]
    module: str
    macs_per_token: int


def sites(program: Program) -> tuple[Site, ...]:
    """Every weight that a linear multiplies with or that token ids look up, in the order of their first use."""
    heads = head_nodes(program)
    heads |= {linear for head in heads if (linear := _in_front(head)) is not None}
    readers: dict[str, list[fx.Node]] = {}
    for node in program.nodes(_LINEAR, _EMBEDDING):
        weight: Any = node.args[0] if node.target is _EMBEDDING else node.args[1]
        if weight.op == "get_attr" and (node.target is _LINEAR or looks_up_tokens(node)):
            readers.setdefault(weight.target, []).append(node)
    return tuple(_site(program, name, tuple(nodes), heads) for name, nodes in readers.items())


def head_nodes(program: Program) -> set[fx.Node]:
    """The linears whose result is an output of the program, up to views, casts, scaling and a soft cap."""
    found = set()
    for value in output_values(program):
        while is_call(value, *_UNARY) and len(value.all_input_nodes) == 1:
            value = value.all_input_nodes[0]
        if is_call(value, _LINEAR):
            found.add(value)
    return found


def _in_front(head: fx.Node) -> fx.Node | None:
    """The linear that only the head reads: a map between bases, which is as near to the logits as the head is."""
    value: Any = head.args[0]
    while is_call(value, *CASTS, torch.ops.drawplate.encode.default, torch.ops.drawplate.last_position.default):
        value = value.args[0]
    return value if is_call(value, _LINEAR) and len(value.users) == 1 else None


def output_values(program: Program) -> list[fx.Node]:
    """The nodes that the program returns."""
    return next(n for n in program.graph.nodes if n.op == "output").all_input_nodes


def looks_up_tokens(node: fx.Node) -> bool:
    """Is its index an input of the program, other than the positions?"""
    index: Any = node.args[1]
    while is_call(index, *CASTS, aten.reshape.default, aten.unsqueeze.default):
        index = index.args[0]
    return isinstance(index, fx.Node) and index.op == "placeholder" and index.target not in (POSITIONS, "input_pos")


def _site(program: Program, name: str, nodes: tuple[fx.Node, ...], heads: set[fx.Node]) -> Site:
    shape = tuple(program.weights[name].shape)
    linears = [n for n in nodes if n.target is _LINEAR]
    table, head = len(linears) < len(nodes), any(n in heads for n in linears)
    role: Role = "tied" if table and linears else "embedding" if table else "head" if head else "linear"
    return Site(name, role, nodes, shape, nodes[0].meta.get("site", ""), math.prod(shape) * len(linears))
