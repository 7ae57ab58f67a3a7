"""last-position: logits of the last token only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from drawplate.analysis.sites import head_nodes, output_values
from drawplate.errors import PassError
from drawplate.facts import ATTENTION_PLAIN, CACHE_INSERTED, HEAD_LAST_POSITION, NUMBERS
from drawplate.invariants import SAME_FUNCTION
from drawplate.passbase import Env, Pass
from drawplate.program import Program
from drawplate.textual.printer import Types

aten = torch.ops.aten
LAST = torch.ops.drawplate.last_position.default
# What treats each position by itself, so that the last one may be taken before it.
PER_POSITION = (
    aten.rms_norm.default,
    aten.layer_norm.default,
    aten.linear.default,
    torch.ops.drawplate.encode.default,
    torch.ops.drawplate.hadamard.default,
)


@dataclass(frozen=True)
class LastPosition(Pass):
    """Take the last position in front of the final norm and the head: a prompt's other logits are never looked at, and
    the head is the largest linear of a small model. The output becomes [batch, 1, vocabulary].
    """

    name: ClassVar = "last-position"
    provides: ClassVar = frozenset({HEAD_LAST_POSITION})
    preserves: ClassVar = NUMBERS | {ATTENTION_PLAIN, CACHE_INSERTED}
    keeps: ClassVar = (SAME_FUNCTION,)

    def run(self, program: Program, env: Env) -> Program:
        if not HEAD_LAST_POSITION.holds(program):
            return program
        head = self._head(program)
        value = head.all_input_nodes[0]
        while is_per_position(value) and len(value.users) == 1:
            head, value = value, value.all_input_nodes[0]
        editor = program.edit()
        reader = editor.of(head)
        with editor.graph.inserting_before(reader):
            last = editor.call(LAST, editor.of(value), like=value)
        reader.args = (last, *reader.args[1:])
        return editor.finish()

    @staticmethod
    def _head(program: Program) -> fx.Node:
        """The head, if there is one and its output is [b, s, vocabulary]. Raises PassError."""
        heads, outputs = head_nodes(program), output_values(program)
        if len(heads) != 1 or len(outputs) != 1 or not is_sequence(outputs[0].meta.get("val")):
            types = Types(program)
            kinds = ", ".join(types.text(o.meta["val"]) for o in outputs)
            raise PassError(
                "there is no last position to take",
                where=program.name,
                why=f"the output should be [batch, length, vocabulary] of one linear; it is {kinds} of {len(heads)}",
                fix="leave last-position out",
            )
        return next(iter(heads))


def is_per_position(value: fx.Node) -> bool:
    """Does it treat each position by itself? So does a product with one factor per channel."""
    factors = value.all_input_nodes[1:]
    product = value.target is aten.mul.Tensor and len(factors) == 1
    vector = product and factors[0].op == "get_attr" and factors[0].meta["val"].dim() == 1
    return value.target in PER_POSITION or vector


def is_sequence(value: Any) -> bool:
    """Is it a tensor of three axes, the middle one of any length?"""
    return isinstance(value, Tensor) and value.dim() == 3 and not isinstance(value.shape[1], int)
