"""Cut a decoder in front of its head, so that logits are computed only where they are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from drawplate.program import Program

_aten = torch.ops.aten
# What may follow the head's linear without mixing positions: soft-capping, scaling, casts.
_PER_ELEMENT: frozenset[Callable[..., Any]] = frozenset(
    {
        _aten.mul.Tensor,
        _aten.div.Tensor,
        _aten.add.Tensor,
        _aten.tanh.default,
        _aten.clamp.default,
        _aten.alias.default,
        _aten._to_copy.default,  # noqa: SLF001  (an operator's name)
        _aten.to.dtype,
    }
)


def split_head(program: Program) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """(body, head) with head(body(*inputs)) = the program's logits; head also takes any selection of positions.

    body: inputs -> [b, s, d]; head: [.., d] -> [.., vocab]. Where the last ops are not a linear with element-wise ops
    behind it, body is the whole program and head returns what it is given.
    """
    whole = program.module()
    (output,) = (n for n in program.graph.nodes if n.op == "output")
    result = output.args[0]
    single = result if isinstance(result, fx.Node) else result[0]
    tail = _tail(single)
    if tail is None:
        if isinstance(result, fx.Node):
            return whole, lambda x: x
        return _prefix(whole, program.graph, single), lambda x: x
    cut = tail[0].args[0]
    assert isinstance(cut, fx.Node)
    return _prefix(whole, program.graph, cut), _suffix(whole, cut, tail)


def _tail(value: fx.Node) -> list[fx.Node] | None:
    """The nodes from the head's linear to the output, in order; None if they are not of that form."""
    tail: list[fx.Node] = []
    while True:
        tail.insert(0, value)
        if value.target is _aten.linear.default:
            reads_weights = all(n.op == "get_attr" for n in value.all_input_nodes[1:])
            return tail if reads_weights and value.all_input_nodes[0].op != "get_attr" else None
        computed = [n for n in value.all_input_nodes if n.op != "get_attr"]
        if value.target not in _PER_ELEMENT or len(computed) != 1 or computed[0] is not value.args[0]:
            return None
        value = computed[0]


def _prefix(whole: nn.Module, graph: fx.Graph, cut: fx.Node) -> fx.GraphModule:
    """The graph with `cut` as its output."""
    body = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    body.graph_copy(graph, copies)
    body.output(copies[cut])
    body.eliminate_dead_code()
    return fx.GraphModule(whole, body)


def _suffix(whole: nn.Module, cut: fx.Node, tail: list[fx.Node]) -> fx.GraphModule:
    """The nodes of `tail` as a module of one input, the value of `cut`."""
    head = fx.Graph()
    copies = {cut: head.placeholder("x")}
    for node in tail:
        for read in node.all_input_nodes:
            if read not in copies:
                copies[read] = head.node_copy(read)
        copies[node] = head.node_copy(node, lambda n: copies[n])
    head.output(copies[tail[-1]])
    return fx.GraphModule(whole, head)
