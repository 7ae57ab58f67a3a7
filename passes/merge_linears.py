"""merge-linears: linears that read the same value, as one."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from drawplate.canonical.match import through_casts, weight_behind
from drawplate.encoding import Grid, QTensor
from drawplate.errors import Refusal
from drawplate.facts import INTERFACE, NUMBERS, stored_weight
from drawplate.invariants import SAME_FUNCTION, SIGNATURE
from drawplate.passbase import Env, Pass
from drawplate.program import Editor, Program, Weight

aten = torch.ops.aten
LINEAR = aten.linear.default


@dataclass(frozen=True)
class MergeLinears(Pass):
    """Linears that read the same value become one linear with all of their rows, and slices of its result: query, key
    and value; gate and up. Exact, since every row has its own scales. A weight that others read too stays alone, and so
    do linears of one value that are stored differently or of which only some have a bias.
    """

    name: ClassVar = "merge-linears"
    preserves: ClassVar = NUMBERS | INTERFACE
    keeps: ClassVar = (SIGNATURE, SAME_FUNCTION)

    def run(self, program: Program, env: Env) -> Program:
        groups: dict[Any, list[fx.Node]] = {}
        shared: dict[fx.Node, list[fx.Node]] = {}
        for node in program.nodes(LINEAR):
            value = node.all_input_nodes[0]
            shared.setdefault(value, []).append(node)
            if not _alone(node, program):
                groups.setdefault((value, _kind(node, program)), []).append(node)
        merged = [nodes for nodes in groups.values() if len(nodes) > 1]
        done = {node for nodes in merged for node in nodes}
        for nodes in shared.values():
            if len(nodes) > 1 and (left := [n for n in nodes if n not in done]):
                env.refuse(_refusal(left, nodes, program))
        editor = program.edit()
        for nodes in env.progress(merged, self.name):
            _merge(editor, nodes)
        return editor.finish()


def merged_name(names: list[str]) -> str:
    """A name for what several weights became: what they share, and between it the parts in which they differ.

    >>> merged_name(["layers.0.attn.q.weight", "layers.0.attn.k.weight"])
    'layers.0.attn.q_k.weight'
    """
    parts = [n.split(".") for n in names]
    head = _shared(parts)
    tail = _shared([p[head:][::-1] for p in parts])
    middle = "_".join("_".join(p[head : len(p) - tail]) for p in parts)
    return ".".join([*parts[0][:head], middle, *parts[0][len(parts[0]) - tail :]])


def _shared(parts: list[list[str]]) -> int:
    """How many first parts all have in common."""
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False)))


def concatenate(weights: list[Weight]) -> Weight:
    """Weights [out_i, in] of one kind -> one [sum of out_i, in]; row by row the same numbers."""
    stored = [w for w in weights if isinstance(w, QTensor)]
    if len(stored) < len(weights):
        return torch.cat([w for w in weights if isinstance(w, Tensor)])
    scale, zero = (torch.cat([getattr(w.grid, p) for w in stored]) for p in ("scale", "zero_point"))
    codes = torch.cat([w.codes for w in stored])
    shape = (sum(w.shape[0] for w in stored), *stored[0].shape[1:])
    return QTensor(codes, Grid(scale, zero), stored[0].encoding, shape, stored[0].packed)


def _alone(node: fx.Node, program: Program) -> str:
    """Why this linear cannot be merged with any other; empty if it can."""
    for read in node.all_input_nodes[1:]:
        weight = weight_behind(read)
        if weight is None:
            return f"the weight of {_site(node)} is computed"
        if len(program.readers(str(weight.target))) != 1 or len(read.users) != 1:
            return f"{weight.target} is read elsewhere too"
    stored = stored_weight(node, program)
    if stored is not None and stored.encoding.blocks(stored.shape)[0] != 1:
        return "rows share a scale"
    return ""


def _kind(node: fx.Node, program: Program) -> tuple[str, bool, int]:
    """What linears of one value must have in common to be merged: how the weight is stored, and whether with a bias."""
    reads = node.all_input_nodes[1:]
    weight = program.weights[str(through_casts(reads[0]).target)]
    if isinstance(weight, QTensor):
        return str(weight.encoding), weight.packed, len(reads)
    return str(weight.dtype), False, len(reads)


def _merge(editor: Editor, nodes: list[fx.Node]) -> None:
    """nodes: linears of the original program that read one value, in order."""
    copies = [editor.of(n) for n in nodes]
    columns = list(zip(*[[a for a in c.args[1:] if a is not None] for c in copies], strict=True))
    value: Any = copies[0].args[0]
    with editor.graph.inserting_before(copies[0]):
        reads = []
        for column in columns:
            names = [str(through_casts(a).target) for a in column]
            read = editor.weight(merged_name(names), concatenate([editor.weights[n] for n in names]))
            first = column[0]
            cast = first.op != "get_attr"
            reads.append(editor.call(first.target, read, *first.args[1:], like=first) if cast else read)
        site = merged_name([_site(c) for c in copies])
        merged = editor.call(LINEAR, value, *reads, like=copies[0])
        merged.meta["site"] = site
        parts, start = [], 0
        for copy in copies:
            rows = editor.weights[str(through_casts(copy.args[1]).target)].shape[0]
            parts.append(editor.call(aten.slice.Tensor, merged, -1, start, start + rows, like=copy))
            start += rows
    for copy, part in zip(copies, parts, strict=True):
        editor.replace(copy, part)


def _refusal(left: list[fx.Node], nodes: list[fx.Node], program: Program) -> Refusal:
    """Why these linears were left out of their value's merge."""
    reasons = [r for r in dict.fromkeys(_alone(n, program) for n in left) if r]
    why = ", ".join(reasons) or "stored differently, or only some with a bias"
    others = ", ".join(_site(n) for n in nodes if n not in left)
    which = f"not merged with {others}, which read the same value" if others else "they read one value and stay apart"
    return Refusal(", ".join(map(_site, left)), "aten.linear", f"{which}: {why}")


def _site(node: fx.Node) -> str:
    return str(node.meta.get("site") or node.name)
