"""quantize-cache: keys and values, and the queries that meet them, as integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from drawplate.canonical.match import aten
from drawplate.encoding import Encoding, per_head
from drawplate.errors import PassError
from drawplate.facts import ATTENTION_PLAIN, HEAD_LAST_POSITION, NUMBERS
from drawplate.invariants import ROUNDS, SIGNATURE
from drawplate.passbase import Env, Pass
from drawplate.program import Program

SDPA = aten.scaled_dot_product_attention.default
ENCODE = torch.ops.drawplate.encode.default


@dataclass(frozen=True)
class QuantizeCache(Pass):
    """Encode what every attention reads: one scale and zero point per token and head, found when the program runs. It
    comes before add-kv-cache, which then keeps the integers; until there is a cache, the rounding is in the graph.

    bits: of the codes, 2 to 8; a code takes a byte of the cache whatever they are. queries: encode queries too, as
    runtimes need that multiply integers; they are not kept.
    """

    bits: int = 8
    queries: bool = True

    name: ClassVar = "quantize-cache"
    requires: ClassVar = frozenset({ATTENTION_PLAIN})
    preserves: ClassVar = NUMBERS | {HEAD_LAST_POSITION}
    keeps: ClassVar = (SIGNATURE, ROUNDS)

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"codes of {self.bits} bits: a cache holds 2 to 8")

    @property
    def encoding(self) -> Encoding:
        """How keys, values and queries will be encoded."""
        return per_head(self.bits)

    def run(self, program: Program, env: Env) -> Program:
        editor = program.edit()
        encoded: dict[fx.Node, fx.Node] = {}
        for node in editor.nodes(SDPA):
            read: list[Any] = [*node.args[0 if self.queries else 1 : 3]]
            for value in read:
                if value not in encoded:
                    with editor.graph.inserting_before(node):
                        encoded[value] = editor.call(ENCODE, value, str(self.encoding), like=node)
            node.args = (*node.args[: 3 - len(read)], *(encoded[x] for x in read), *node.args[3:])
        if not encoded:
            raise PassError(
                "there are no keys and values to round",
                where=program.name,
                why="no attention was recognised",
                fix="leave quantize-cache out",
            )
        return editor.finish()
