"""pack-weights: codes into as few bits as they need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from drawplate.encoding import QTensor
from drawplate.facts import ACTIVATIONS_QUANTISED, INTERFACE, STORED, WEIGHTS_PACKED, WEIGHTS_QUANTISED
from drawplate.invariants import SAME_INTEGERS, SIGNATURE
from drawplate.passbase import Env, Pass
from drawplate.program import Program


@dataclass(frozen=True)
class PackWeights(Pass):
    """Bit-pack the codes of every stored weight along its last axis, lowest bits first, rows padded to whole bytes."""

    name: ClassVar = "pack-weights"
    requires: ClassVar = frozenset({WEIGHTS_QUANTISED})
    provides: ClassVar = frozenset({WEIGHTS_PACKED})
    preserves: ClassVar = STORED | INTERFACE | {ACTIVATIONS_QUANTISED}
    keeps: ClassVar = (SIGNATURE, SAME_INTEGERS)

    def run(self, program: Program, env: Env) -> Program:
        editor = program.edit()
        stored = {name: w for name, w in program.weights.items() if isinstance(w, QTensor)}
        for name in env.progress(list(stored), self.name):
            editor.weights[name] = stored[name].pack()
        return editor.finish()
