"""Are two programs the same, weight contents, value names and source lines aside?"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import fx

from drawplate.program import Program
from drawplate.textual.printer import Types, constant_text, weight_text
from drawplate.textual.words import operator_name


def same_structure(p: Program, q: Program) -> bool:
    """Are the headers, the weights' types and each value (operator, arguments, type, site) the same?"""
    return not differences(p, q)


def differences(p: Program, q: Program) -> list[str]:
    """In what two programs differ: one line each, the first differing value only."""
    found = [
        f"{what}: {a} and {b}"
        for what, a, b in (
            ("name", p.name, q.name),
            ("inputs", p.inputs, q.inputs),
            ("state", p.state, q.state),
            ("dims", p.dims, q.dims),
            ("facts", sorted(p.facts), sorted(q.facts)),
            ("weights", _weights(p), _weights(q)),
        )
        if a != b
    ]
    a, b = _values(p), _values(q)
    if a != b:
        i = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        found.append(f"value {i}: {' | '.join(str(v[i]) if i < len(v) else 'none' for v in (a, b))}")
    return found


def _weights(program: Program) -> dict[str, str]:
    return {name: weight_text(program.weights[name]) for name in sorted(program.weights)}


def _values(program: Program) -> list[tuple[Any, ...]]:
    """Per call and output: operator, arguments, type and site; values by their number, weights by name."""
    numbers: dict[fx.Node, str] = {}
    types = Types(program)
    rows: list[tuple[Any, ...]] = []
    inputs = itertools.count()

    def argument(value: Any) -> str:
        if isinstance(value, fx.Node):
            return numbers[value]
        kind = type(value).__name__ if isinstance(value, int | float | str | torch.dtype) else ""
        return f"{kind} {constant_text(value, argument)}"

    for node in program.graph.nodes:
        if node.op == "placeholder":
            numbers[node] = f"%input {next(inputs)}"
        elif node.op == "get_attr":
            numbers[node] = f"@{node.target}"
        else:
            numbers[node] = f"%{len(rows)}"
            type_ = types.text(node.meta["val"]) if "val" in node.meta else ""
            args = [argument(a) for a in node.args]
            kwargs = [f"{k}={argument(v)}" for k, v in node.kwargs.items()]
            name = "return" if node.op == "output" else operator_name(node.target)
            rows.append((name, *args, *kwargs, type_, " ".join((node.meta.get("site") or "").split())))
    return rows
