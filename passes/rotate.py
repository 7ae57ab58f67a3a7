"""rotate: orthogonal changes of basis, fused into weights or online, where the graph allows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from drawplate.analysis.rotations import plan
from drawplate.facts import CACHE_INSERTED, HEAD_LAST_POSITION, WEIGHTS_FLOAT
from drawplate.invariants import SAME_FUNCTION, SIGNATURE
from drawplate.passbase import Env, Pass
from drawplate.program import Program
from drawplate.turning import fixed_matrices, turn_program


@dataclass(frozen=True)
class Rotate(Pass):
    """Turn the channels of activations, so that outliers spread over all of them and rounding costs less; what reads
    them is turned back, so the function stays (QuaRot: Ashkboos et al. 2024, arXiv:2404.00456; SpinQuant: Liu et al.
    2024, arXiv:2405.16406). Run fold-norms first: a norm's weight between two bases is in the way.

    kind: "hadamard" (with random signs; a random orthogonal matrix where no Hadamard matrix of that order is known,
    which is told) or "random" orthogonal. r1: residual streams. r2: values, per key-value head. r3: queries and keys,
    online, for a quantised cache. r4: inputs of linears behind a pointwise function, online.

    maps: the most explicit d x d products that turning one residual stream may cost. One is what a table costs that is
    embedding and head at once: logits = E' M n with E' = E R and M = R^T diag(g) R, so the table stays one table.
    block: channels that r4 turns together; 0 all, or as many as a Hadamard matrix is known for.
    """

    kind: Literal["hadamard", "random"] = "hadamard"
    r1: bool = True
    r2: bool = True
    r3: bool = False
    r4: bool = False
    maps: int = 1
    block: int = 0

    name: ClassVar = "rotate"
    requires: ClassVar = frozenset({WEIGHTS_FLOAT})
    preserves: ClassVar = frozenset({WEIGHTS_FLOAT, CACHE_INSERTED, HEAD_LAST_POSITION})
    keeps: ClassVar = (SIGNATURE, SAME_FUNCTION)

    def run(self, program: Program, env: Env) -> Program:
        found = plan(program, r1=self.r1, r2=self.r2, r3=self.r3, r4=self.r4, maps=self.maps, block=self.block)
        for refusal in found.refusals:
            env.refuse(refusal)
        matrices, notes = fixed_matrices(found, self.kind, env.seed)
        for note in notes:
            env.refuse(note)
        return turn_program(program, found, matrices, lambda names: env.progress(names, self.name))
