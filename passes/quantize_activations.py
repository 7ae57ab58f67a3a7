"""quantize-activations: what linears with stored weights read, as integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from drawplate.activations import ENCODE, encode_inputs
from drawplate.encoding import Encoding, QTensor, per_token
from drawplate.errors import PassError, Refusal, grouped
from drawplate.facts import ACTIVATIONS_QUANTISED, INTERFACE, LINEARS_QUANTISED, STORED, WEIGHTS_PACKED, stored_weight
from drawplate.invariants import ROUNDS, SIGNATURE
from drawplate.passbase import Env, Pass
from drawplate.program import Program
from drawplate.target import Choice

LINEAR = torch.ops.aten.linear.default


@dataclass(frozen=True)
class QuantizeActivations(Pass):
    """Encode the input of every linear whose weight is stored as integers: one scale and zero point per token, found
    when the program runs. A value that several linears read is encoded once, for all of them.

    bits: of the codes. A linear that the target takes with floating-point activations only is left as it is, and said.
    """

    bits: int = 8

    name: ClassVar = "quantize-activations"
    requires: ClassVar = frozenset({LINEARS_QUANTISED})
    provides: ClassVar = frozenset({ACTIVATIONS_QUANTISED})
    preserves: ClassVar = STORED | INTERFACE | {WEIGHTS_PACKED}
    keeps: ClassVar = (SIGNATURE, ROUNDS)

    @property
    def encoding(self) -> Encoding:
        """How activations will be encoded."""
        return per_token(self.bits)

    def run(self, program: Program, env: Env) -> Program:
        menu = env.target.menu.get("linear", ()) if env.target else ()
        linears, refusals = [], []
        for node in program.nodes(LINEAR):
            weight = stored_weight(node, program)
            if weight is None:
                continue
            why = self._refusal(node, node.all_input_nodes[0], weight, menu)
            if why:
                refusals.append(why)
            else:
                linears.append(node)
        if not linears:
            listed = "\n".join(grouped(refusals))
            raise PassError(f"no activation can be encoded as '{self.encoding}'", why=listed)
        env.refusals.extend(refusals)
        editor = program.edit()
        encode_inputs(editor, linears, self.encoding)
        return editor.finish()

    def _refusal(self, node: fx.Node, value: fx.Node, weight: QTensor, menu: tuple[Choice, ...]) -> Refusal | None:
        """Why this linear's input is left as it is."""
        site, source = node.meta.get("site") or node.name, node.meta.get("source") or ""
        if value.target is ENCODE and value.args[1] != str(self.encoding):
            raise PassError(
                f"what {site} reads is encoded as '{value.args[1]}' already",
                where=source,
                why=f"encoding it as '{self.encoding}' would round it twice",
                fix="name quantize-activations once",
            )
        admitted = [c for c in menu if any(c.admits(weight.encoding, a) for a in (self.encoding, None))]
        if admitted and all(c.activation is None for c in admitted):
            why = f"with a weight of '{weight.encoding}' the target computes on floating-point activations"
            return Refusal(site, "aten.linear", why, source)
        return None
