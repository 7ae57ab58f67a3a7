"""quantize-weights: linears' weights as integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from drawplate.analysis.sites import Role, sites
from drawplate.encoding import Encoding, RangeMethod, ScaleDtype
from drawplate.facts import ACTIVATIONS_QUANTISED, EMBEDDING_QUANTISED, INTERFACE, LINEARS_QUANTISED, WEIGHTS_QUANTISED
from drawplate.invariants import ROUNDS, SIGNATURE
from drawplate.passbase import Env, Pass
from drawplate.program import Program
from drawplate.quantising import refuse_nothing_there, store

ROLES: dict[str, tuple[Role, ...]] = {
    "body": ("linear",),
    "head": ("head", "tied"),
    "all": ("linear", "head", "tied"),
}


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Store the weights of linears as integers, each rounded to the nearest.

    where: "body" (all linears but the head), "head" (the one that gives the logits; where the embedding shares its
    table, both read the stored one), or "all". bits: 1 to 16. block: elements that share a scale along [out, in], -1
    for a whole axis: 1x32 is groups of 32, 1x-1 per output channel, -1x-1 per tensor. symmetric: zero is the middle
    code. scale: the dtype that scales are stored in. method: "round" to nearest, each weight by itself. range:
    "minmax" covers each block's largest element; "mse" cuts it off where that makes the squared error smaller.
    """

    where: Literal["body", "head", "all"] = "body"
    bits: int = 4
    block: tuple[int, ...] = (1, 32)
    symmetric: bool = True
    scale: ScaleDtype = "f32"
    method: Literal["round"] = "round"
    range: RangeMethod = "minmax"

    name: ClassVar = "quantize-weights"
    provides: ClassVar = frozenset({WEIGHTS_QUANTISED, LINEARS_QUANTISED})
    preserves: ClassVar = INTERFACE | {ACTIVATIONS_QUANTISED, EMBEDDING_QUANTISED}
    keeps: ClassVar = (SIGNATURE, ROUNDS)

    @property
    def encoding(self) -> Encoding:
        """How the weights will be stored."""
        return Encoding(self.bits, self.block, self.symmetric, scale=self.scale)

    def run(self, program: Program, env: Env) -> Program:
        wanted = [s for s in sites(program) if s.role in ROLES[self.where]]
        if not wanted:
            return refuse_nothing_there(program, "head" if self.where == "head" else "linear", env)
        return store(program, wanted, self.encoding, self.range, env, self.name)
