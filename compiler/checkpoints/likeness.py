"""Is a program the graph that an architecture's loader builds? If so: which of its weights stands for which of theirs.

A file that stores weights by name says nothing of the graph, so every difference is refused. Two graphs are walked from
their outputs to their inputs side by side; names do not matter, only what reads what.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from drawplate.canonical.match import aten, same_length
from drawplate.checkpoints.origins import leaves
from drawplate.encoding import QTensor
from drawplate.errors import Refusal
from drawplate.program import Program
from drawplate.textual.words import operator_name

NORMS: dict[Any, tuple[tuple[int, float], ...]] = {
    aten.rms_norm.default: ((2, 1.0),),
    aten.layer_norm.default: ((2, 1.0), (3, 0.0)),
}
"""Of a norm: the arguments that may be left out, and what such a weight is filled with then."""
FIXES = {
    "drawplate.hadamard": "leave r3 and r4 out of rotate: the other rotations are in the weights",
    "drawplate.encode": "leave out what rounds activations and caches: the loader decides that",
    "drawplate.last_position": "leave out last-position",
}
DEFAULT_FIX = "leave out the pass that changed the graph: a loader builds the architecture's own"


@dataclass
class Likeness:
    """names: the program's weights -> the architecture's. filled: weights of the architecture that the program has done
    without, and the number that stands for them: a folded norm's are 1. refusals: every difference that was found."""

    names: dict[str, str] = field(default_factory=dict)
    filled: dict[str, float] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)


def likeness(program: Program, reference: Program) -> Likeness:
    """Walk both. Where one side merely has an operation more it is stepped over, so that every difference is told."""
    if program.state:
        fix = "leave out add-kv-cache: the loader keeps a cache of its own"
        return Likeness(refusals=[Refusal(s.name, "", "it is kept between calls", fix=fix) for s in program.state])
    return _Walk(program, reference).found


class _Walk:
    def __init__(self, program: Program, reference: Program) -> None:
        self.found = Likeness()
        self._program, self._reference = program, reference
        self._inputs = tuple([n for n in p.graph.nodes if n.op == "placeholder"] for p in (program, reference))
        self._taken: dict[str, str] = {}
        self._order = {node: i for i, node in enumerate(program.graph.nodes)}
        self._told: dict[fx.Node | None, Refusal] = {}
        seen: set[tuple[Any, Any]] = set()
        todo: list[tuple[Any, Any]] = [(_output(program), _output(reference))]
        while todo:
            pair = todo.pop()
            if pair not in seen:
                seen.add(pair)
                todo += self._pairs(*pair)
        self.found.refusals += [self._told[n] for n in sorted(self._told, key=lambda n: self._order.get(n, -1))]

    def _pairs(self, ours: fx.Node, theirs: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
        """What has to be alike for these two to be."""
        if "get_attr" in (ours.op, theirs.op):
            self._weight(ours, theirs)
            return []
        if ours.op == theirs.op == "placeholder":
            if self._inputs[0].index(ours) != self._inputs[1].index(theirs):
                self._refuse(ours, "it reads another input than the architecture does")
            return []
        if ours.op != theirs.op or ours.target != theirs.target:
            return self._step_over(ours, theirs)
        a, b = list(self._leaves(ours)), list(self._leaves(theirs))
        self._fill(ours, theirs, a, b)
        if len(a) != len(b) or any(not _alike(x, y) for x, y in zip(a, b, strict=True)):
            self._refuse(ours, f"its arguments are not the architecture's: {_told(a)}, there {_told(b)}")
            return []
        return [(x, y) for x, y in zip(a, b, strict=True) if isinstance(x, fx.Node) and isinstance(y, fx.Node)]

    def _leaves(self, node: fx.Node) -> Iterator[Any]:
        """Arguments, one by one; those of a linear that are not given count as None."""
        args: list[Any] = list(node.args)
        if node.target is aten.linear.default:
            args += [None] * (3 - len(args))
        if node.target in NORMS:
            args += [None] * (max(i for i, _ in NORMS[node.target]) + 1 - len(args))
        yield from leaves((args, sorted(node.kwargs.items())))

    def _fill(self, ours: fx.Node, theirs: fx.Node, a: list[Any], b: list[Any]) -> None:
        """A norm without a weight is one whose weight is all ones: the pair of arguments is left out."""
        at = 0
        for index, number in NORMS.get(ours.target, ()):
            at = len(list(leaves(ours.args[:index])))
            there = b[at] if at < len(b) else None
            if at < len(a) and a[at] is None and isinstance(there, fx.Node) and there.op == "get_attr":
                self.found.filled[str(there.target)] = number
                b[at] = None

    def _weight(self, ours: fx.Node, theirs: fx.Node) -> None:
        if ours.op != theirs.op:
            if ours.op == "get_attr":
                self._refuse(ours, f"the weight '{ours.target}' stands where the architecture computes {_op(theirs)}")
            else:
                self._refuse(ours, f"it stands where the architecture has the weight '{theirs.target}'")
            return
        mine, name = str(ours.target), str(theirs.target)
        here, there = tuple(self._program.weights[mine].shape), tuple(self._reference.weights[name].shape)
        if here != there:
            self._refuse(ours, f"its shape is {list(here)}, the architecture's '{name}' has {list(there)}")
        elif self.found.names.setdefault(mine, name) != name:
            self._refuse(ours, f"it is one weight, the architecture has '{name}' and '{self.found.names[mine]}' there")
        elif self._taken.setdefault(name, mine) != mine:
            self._refuse(ours, f"the architecture has one weight '{name}' for it and for '{self._taken[name]}'")

    def _step_over(self, ours: fx.Node, theirs: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
        """The operation that one side has more; or neither, and then what is behind them is not known."""
        for node in _values(ours):
            if node.op == theirs.op and node.target == theirs.target:
                self._refuse(ours, "the architecture has no such operation there", _fix(ours))
                return [(node, theirs)]
        for node in _values(theirs):
            if node.op == ours.op and node.target == ours.target:
                self._refuse(ours, f"the architecture has {_op(theirs)} behind it, which is missing")
                return [(ours, node)]
        self._refuse(ours, f"the architecture has {_op(theirs)} there", _fix(ours))
        return []

    def _refuse(self, node: fx.Node, why: str, fix: str = DEFAULT_FIX) -> None:
        name = str(node.target) if node.op in ("get_attr", "placeholder") else ""
        site = name or node.meta.get("site") or node.name
        self._told.setdefault(node, Refusal(site, _op(node), why, node.meta.get("source") or "", fix))


def constants_differ(program: Program, found: Likeness, constants: Mapping[str, torch.Tensor]) -> list[Refusal]:
    """Weights of the program that a loader computes itself, to other numbers. Looks at contents, where there are any.

    constants: what the loader computes, by the architecture's names.
    """
    wrong = []
    for mine, name in found.names.items():
        weight = program.weights[mine]
        if name not in constants or weight_is_hollow(weight):
            continue
        if isinstance(weight, QTensor) or not torch.equal(weight.to(constants[name].dtype), constants[name]):
            why = "the loader computes it from config.json, and to other numbers"
            wrong.append(Refusal(mine, "", why, fix="leave it as the model has it"))
    return wrong


def weight_is_hollow(weight: Any) -> bool:
    """Has it no contents, as in a rehearsal?"""
    return bool((weight.codes if isinstance(weight, QTensor) else weight).is_meta)


def _output(program: Program) -> fx.Node:
    return next(n for n in program.graph.nodes if n.op == "output")


def _values(node: fx.Node) -> list[fx.Node]:
    """The tensors that it reads, weights aside."""
    return [n for n in node.all_input_nodes if n.op != "get_attr" and isinstance(n.meta.get("val"), torch.Tensor)]


def _alike(a: Any, b: Any) -> bool:
    """Can these two arguments be the same? Of two values only what they are matters so far."""
    if isinstance(a, fx.Node) or isinstance(b, fx.Node):
        return isinstance(a, fx.Node) and isinstance(b, fx.Node)
    return type(a) is type(b) and (same_length(a, b) if isinstance(a, torch.SymInt) else bool(a == b))


def _op(node: fx.Node) -> str:
    if node.op == "get_attr":
        return "weight"
    return operator_name(node.target) if node.op == "call_function" else node.op


def _fix(node: fx.Node) -> str:
    return FIXES.get(_op(node), DEFAULT_FIX)


def _told(leaves: list[Any]) -> str:
    return ", ".join("x" if isinstance(a, fx.Node) else str(a) for a in leaves)
