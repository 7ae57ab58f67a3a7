"""Sub-expressions over weights alone become weights: `1 + w` is `model.norm.weight_add` from here on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from drawplate.canonical.match import aten
from drawplate.canonical.share import is_pure
from drawplate.program import Editor

# Folding these alone would rename a weight and gain nothing.
_VIEWS = (
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.expand.default,
    aten.reshape.default,
)


def fold(editor: Editor, told: Callable[[str, fx.Node], None] | None = None) -> None:
    """Evaluate each largest sub-expression over weights, unless its value is larger than what it is made from.

    told: is given the name of each weight that is made, and the node that stands for it so far.
    """
    constant = constants(editor)
    for node, size in constant.items():
        if node.op == "get_attr" or node.target in _VIEWS or all(u in constant for u in node.users):
            continue
        value = evaluate(editor, node)
        if not isinstance(value, Tensor) or value.numel() > size:
            continue
        name = _name(editor, node)
        if told is not None:
            told(name, node)
        with editor.graph.inserting_before(node):
            new = editor.weight(name, value)
        new.meta.update(node.meta)
        editor.replace(node, new)


def constants(editor: Editor) -> dict[fx.Node, int]:
    """Nodes that depend on weights alone -> how many numbers these hold."""
    state = {spec.name for spec in editor.state}
    found: dict[fx.Node, int] = {}
    for node in editor.graph.nodes:
        if node.op == "get_attr" and node.target not in state and isinstance(editor.weights[node.target], Tensor):
            found[node] = editor.weights[node.target].numel()  # type: ignore[union-attr]
        elif node.op == "call_function" and is_pure(node.target):
            inputs = node.all_input_nodes
            if inputs and all(n in found for n in inputs):
                found[node] = sum(found[n] for n in inputs)
    return found


def evaluate(editor: Editor, node: fx.Node) -> Any:
    """The value of a node that depends on weights alone."""
    if node.op == "get_attr":
        return editor.weights[str(node.target)]
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: evaluate(editor, n))
    with torch.no_grad():
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _name(editor: Editor, node: fx.Node) -> str:
    """The first weight's name and the operation's; with a number if there is one of that name already."""
    root = node
    while root.op != "get_attr":
        root = root.all_input_nodes[0]
    operation = str(node.target).removeprefix("aten.").split(".")[0]
    name = f"{root.target}_{operation}"  # not a dot: the weight itself may stay, and is no module
    known = [k for k in editor.weights if k == name or k.startswith(name + "_")]
    return f"{name}_{len(known) + 1}" if known else name
