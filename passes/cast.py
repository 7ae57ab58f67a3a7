"""cast: weights and computation in another floating dtype."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from drawplate.analysis.sites import output_values
from drawplate.encoding import SCALE_DTYPES, ScaleDtype
from drawplate.errors import PassError
from drawplate.facts import INTERFACE, WEIGHTS_FLOAT
from drawplate.invariants import ROUNDS, SIGNATURE
from drawplate.passbase import Env, Pass
from drawplate.program import Editor, Program

aten = torch.ops.aten
TO = aten.to.dtype


@dataclass(frozen=True)
class Cast(Pass):
    """Compute in another floating dtype: weights, activations and state. Inputs and outputs keep theirs.

    dtype: "bf16", "f16" or "f32". What is computed from positions alone, such as the angles of rotary embeddings,
    stays as it is and is cast where an activation meets it: rounded positions would be other positions.
    """

    dtype: ScaleDtype = "bf16"

    name: ClassVar = "cast"
    requires: ClassVar = frozenset({WEIGHTS_FLOAT})
    preserves: ClassVar = INTERFACE | {WEIGHTS_FLOAT}
    keeps: ClassVar = (SIGNATURE, ROUNDS)

    def run(self, program: Program, env: Env) -> Program:
        wanted = SCALE_DTYPES[self.dtype]
        active = activations(program)
        editor = program.edit()
        for node in program.graph.nodes:
            if node.op == "get_attr" and any(user in active for user in node.users):
                _cast_stored(editor, str(node.target), wanted)
            elif node.op == "placeholder" and node in active:
                _meet(editor, node, list(node.users), wanted)
            elif node.op == "call_function" and node not in active and isinstance(node.meta["val"], Tensor):
                _meet(editor, node, [u for u in node.users if u in active], wanted)
        _keep_outputs(program, editor, wanted, active)
        try:
            return editor.finish()
        except RuntimeError as error:
            raise PassError(
                f"the program cannot be computed in {self.dtype}",
                where=program.name,
                why=str(error).splitlines()[0],
                fix="leave cast out: some operator here takes one dtype only",
            ) from error


def activations(program: Program) -> set[fx.Node]:
    """The floating-point values that depend on more than positions and weights: on a table's rows, or on a
    floating-point input. Experts chosen by such values count, lengths of such values do not."""
    depend: set[fx.Node] = set()
    for node in program.graph.nodes:
        starts = is_floating(node) and (node.op == "placeholder" or node.target is aten.embedding.default)
        reads = node.op == "call_function" and not depend.isdisjoint(node.all_input_nodes)
        if starts or (reads and not isinstance(node.meta["val"], (int, float, torch.SymInt, torch.SymFloat))):
            depend.add(node)
    return {node for node in depend if is_floating(node)}


def is_floating(node: fx.Node) -> bool:
    """Is it a floating-point tensor, or several values with one among them?"""
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else [value]
    return any(isinstance(v, Tensor) and v.is_floating_point() for v in values)


def _cast_stored(editor: Editor, name: str, dtype: torch.dtype) -> None:
    """A weight, or the declaration of a state tensor, in the new dtype."""
    weight = editor.weights.get(name)
    if isinstance(weight, Tensor) and weight.is_floating_point():
        editor.weights[name] = weight.to(dtype)
    editor.state[:] = [
        replace(s, dtype=dtype) if s.name == name and s.dtype.is_floating_point else s for s in editor.state
    ]


def _meet(editor: Editor, node: fx.Node, readers: list[fx.Node], dtype: torch.dtype) -> None:
    """Cast a value once for these readers."""
    if not readers or not is_floating(node) or node.meta["val"].dtype == dtype:
        return
    copy = editor.of(node)
    after = copy
    while after.next.op == "placeholder":  # inputs stay together
        after = after.next
    with editor.graph.inserting_after(after):
        cast = editor.call(TO, copy, dtype, like=node)
    for reader in readers:
        editor.of(reader).replace_input_with(copy, cast)


def _keep_outputs(program: Program, editor: Editor, dtype: torch.dtype, active: set[fx.Node]) -> None:
    """Cast the outputs back to what they were."""
    output = next(n for n in reversed(editor.graph.nodes) if n.op == "output")
    for node in output_values(program):
        was: Any = node.meta["val"].dtype
        if node in active and was != dtype:
            with editor.graph.inserting_before(output):
                back = editor.call(TO, editor.of(node), was, like=node)
            output.replace_input_with(editor.of(node), back)
