"""train-weights: training under the rounding that the model will have (QAT), and storing what was trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from drawplate.activations import encode_inputs
from drawplate.analysis.sites import sites
from drawplate.encoding import Encoding, QTensor, ScaleDtype, encode, per_channel, per_token
from drawplate.errors import PassError
from drawplate.facts import INTERFACE, LINEARS_QUANTISED, WEIGHTS_FLOAT, WEIGHTS_QUANTISED
from drawplate.invariants import SIGNATURE, STORES
from drawplate.leaves import Leaf, Rounded, RoundedLowRank
from drawplate.options import refuse_numbers
from drawplate.passbase import Env, Invariant
from drawplate.program import Program
from drawplate.quantising import unfit
from drawplate.rehearsal import hollow
from drawplate.trainpass import TrainingPass

LINEAR = torch.ops.aten.linear.default


@dataclass(frozen=True)
class TrainWeights(TrainingPass):
    """Quantisation-aware training: all weights of linears, and tables, are trained end to end while they are rounded,
    and stored as they were rounded last (Jacob et al. 2018, arXiv:1712.05877; the arithmetic of torchao's QAT). What
    linears read is rounded meanwhile too; put quantize-activations behind, which leaves that in the model.

    bits, block, symmetric, scale: of linears, see quantize-weights. vocabulary: bits of tables and the head, each row
    with a scale; 0 leaves them in floating point. activations: bits of what linears read while training, one scale per
    token; 0 rounds nothing. rank: 0 trains weights; above it a change of so low a rank is trained, W + lora_scale * B
    A, inside the rounding, so that nothing is left to fold (less memory, and less moves).

    loss, beta, tokens, epochs, batch, held, precision: see train-lora. rate: AdamW's first, falling along a cosine to a
    twentieth.
    """

    rate: float = 1e-4
    bits: int = 4
    block: tuple[int, ...] = (1, 32)
    symmetric: bool = True
    scale: ScaleDtype = "f32"
    vocabulary: int = 8
    activations: int = 8
    rank: int = 0
    lora_scale: float = 2.0

    name: ClassVar = "train-weights"
    requires: ClassVar = frozenset({WEIGHTS_FLOAT})
    provides: ClassVar = frozenset({WEIGHTS_QUANTISED, LINEARS_QUANTISED})
    preserves: ClassVar = INTERFACE
    keeps: ClassVar[tuple[Invariant, ...]] = (SIGNATURE, STORES)

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_numbers(self, positive=("lora_scale",), not_negative=("rank", "vocabulary", "activations"))
        if max(self.vocabulary, self.activations) > 8:
            raise ValueError("tables and activations have 8 bits at most")

    def run(self, program: Program, env: Env) -> Program:
        encodings = self._encodings(program, env)
        self.refuse_untrainable(program, encodings, "no weight fits", "give another block")
        if hollow(program):
            return _stored(program, encodings, list(encodings))
        tables = [s.name for s in sites(program) if s.role != "linear" and s.name in encodings]
        base = _stored(program, encodings, tables if self.rank else [])
        random = torch.Generator().manual_seed(env.seed)
        leaves = {n: self._leaf(program.weights[n], e, random) for n, e in encodings.items() if n not in base.encodings}
        editor = base.edit()
        editor.weights.update(self.trained(program, self._rounding(base, encodings), leaves, env))
        return editor.finish()

    def _encodings(self, program: Program, env: Env) -> dict[str, Encoding]:
        """Of each weight that will be stored. What does not fit is refused."""
        body = Encoding(self.bits, self.block, self.symmetric, scale=self.scale)
        table = per_channel(self.vocabulary) if self.vocabulary else None
        found = {}
        for site in sites(program):
            encoding, weight = body if site.role == "linear" else table, program.weights[site.name]
            if encoding is None or isinstance(weight, QTensor):
                continue
            if why := unfit(site, weight, encoding):
                env.refuse(why)
            else:
                found[site.name] = encoding
        if body not in found.values():
            raise PassError(f"no weight of a linear can be stored as '{body}'", fix="give another block")
        return found

    def _rounding(self, program: Program, encodings: dict[str, Encoding]) -> Program:
        """The program in which what linears read is rounded."""
        if not self.activations:
            return program
        editor = program.edit()
        linears = [n for n in program.nodes(LINEAR) if getattr(n.args[1], "target", None) in encodings]
        encode_inputs(editor, linears, per_token(self.activations))
        return editor.finish()

    def _leaf(self, weight: Any, encoding: Encoding, random: torch.Generator) -> Leaf:
        if self.rank:
            return RoundedLowRank(weight, encoding, self.rank, self.lora_scale, random)
        return Rounded(weight, encoding)


def _stored(program: Program, encodings: Mapping[str, Encoding], names: Iterable[str]) -> Program:
    """With these weights rounded to nearest."""
    editor, weights = program.edit(), dict[str, Any](program.weights)
    editor.weights.update({name: encode(weights[name], encodings[name], name=name) for name in names})
    return editor.finish()
