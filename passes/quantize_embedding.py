"""quantize-embedding: the vocabulary's table as integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from drawplate.analysis.sites import sites
from drawplate.encoding import Encoding, RangeMethod, ScaleDtype
from drawplate.facts import ACTIVATIONS_QUANTISED, EMBEDDING_QUANTISED, INTERFACE, LINEARS_QUANTISED, WEIGHTS_QUANTISED
from drawplate.invariants import ROUNDS, SIGNATURE
from drawplate.passbase import Env, Pass
from drawplate.program import Program
from drawplate.quantising import by_rounding, refuse_nothing_there, store


@dataclass(frozen=True)
class QuantizeEmbedding(Pass):
    """Store the tables that token ids look up as integers. A table that is also the head's weight is stored once.

    Options as quantize-weights has them; block is along [rows, width], and 1x-1 is a scale per token of the vocabulary.
    """

    bits: int = 8
    block: tuple[int, ...] = (1, -1)
    symmetric: bool = True
    scale: ScaleDtype = "f32"
    range: RangeMethod = "minmax"

    name: ClassVar = "quantize-embedding"
    provides: ClassVar = frozenset({WEIGHTS_QUANTISED, EMBEDDING_QUANTISED})
    preserves: ClassVar = INTERFACE | {ACTIVATIONS_QUANTISED, LINEARS_QUANTISED}
    keeps: ClassVar = (SIGNATURE, ROUNDS)

    @property
    def encoding(self) -> Encoding:
        """How the tables will be stored."""
        return Encoding(self.bits, self.block, self.symmetric, scale=self.scale)

    def run(self, program: Program, env: Env) -> Program:
        wanted = [s for s in sites(program) if s.role in ("embedding", "tied")]
        if not wanted:
            return refuse_nothing_there(program, "embedding", env)
        return store(program, wanted, self.encoding, lambda e: by_rounding(program, e, self.range, env, self.name), env)
