"""quantize-weights: linears' weights as integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from drawplate.analysis.sites import Role, sites
from drawplate.encoding import Encoding, QTensor, RangeMethod, ScaleDtype
from drawplate.facts import ACTIVATIONS_QUANTISED, EMBEDDING_QUANTISED, INTERFACE, LINEARS_QUANTISED, WEIGHTS_QUANTISED
from drawplate.gptq import Settings as GptqSettings
from drawplate.invariants import ROUNDS, SIGNATURE, STORES
from drawplate.options import refuse_numbers
from drawplate.passbase import Env, Invariant, Pass
from drawplate.program import Program
from drawplate.quantising import Method, Settings, by, refuse_nothing_there, store
from drawplate.signround import Settings as SignRoundSettings

ROLES: dict[str, tuple[Role, ...]] = {
    "body": ("linear",),
    "head": ("head", "tied"),
    "all": ("linear", "head", "tied"),
}


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Store the weights of linears as integers.

    where: "body" (all linears but the head), "head" (the one that gives the logits; where the embedding shares its
    table, both read the stored one), or "all". bits: 1 to 16. block: elements that share a scale along [out, in], -1
    for a whole axis: 1x32 is groups of 32, 1x-1 per output channel, -1x-1 per tensor. ragged: the last group of a row
    may be shorter, which GPTQ's format holds. symmetric: zero is the middle code. scale: the dtype that scales are
    stored in. range: "minmax" covers each block's largest element; "mse" cuts it off where that makes the squared error
    smaller.

    method: "round" to nearest, each weight by itself. The others read a calibration text. "gptq": column by column, the
    error of each made up for by the next ones (Frantar et al. 2022, arXiv:2210.17323), operator by operator, so that a
    linear reads what the stored linears before it give. "signround": up or down, and how much of each range to cover,
    learned by the signs of gradients, block by block, so that a block which reads what the stored blocks before it give
    makes what it made in floating point (AutoRound: Cheng et al. 2023, arXiv:2309.05516). A weight that is read in
    several places is rounded to nearest; by signround so is the head.

    Of both: tokens of the text that are read; spill, bytes of activations that stay in memory, the rest goes to disk.
    Of gptq: damping, as a share of the second moments' mean; act_order, columns that are read most first. Of signround:
    steps, of each block; rate, of the first step, in steps of the grid and in shares of the range, falling to 0 on a
    line, by default 1 / steps; batch, windows of the text per step.
    """

    where: Literal["body", "head", "all"] = "body"
    bits: int = 4
    block: tuple[int, ...] = (1, 32)
    symmetric: bool = True
    scale: ScaleDtype = "f32"
    method: Literal["round", "gptq", "signround"] = "round"
    range: RangeMethod = "minmax"
    tokens: int = 16384
    damping: float = 0.01
    act_order: bool = False
    steps: int = 200
    rate: float | None = None
    batch: int = 8
    spill: int = 4 << 30
    ragged: bool = False

    name: ClassVar = "quantize-weights"
    provides: ClassVar = frozenset({WEIGHTS_QUANTISED, LINEARS_QUANTISED})
    preserves: ClassVar = INTERFACE | {ACTIVATIONS_QUANTISED, EMBEDDING_QUANTISED}
    keeps: ClassVar = (SIGNATURE, ROUNDS)

    def __post_init__(self) -> None:
        if self.tokens < 2:
            raise ValueError(f"tokens={self.tokens} is not above 1")
        refuse_numbers(self, positive=("damping", "steps", "rate", "batch"), not_negative=("spill",))

    @property
    def promises(self) -> tuple[Invariant, ...]:
        """Only what is rounded to nearest moves by half a step at most."""
        return self.keeps if self.method == "round" else (SIGNATURE, STORES)

    @property
    def encoding(self) -> Encoding:
        """How the weights will be stored."""
        return Encoding(self.bits, self.block, self.symmetric, scale=self.scale, ragged=self.ragged)

    @property
    def _method(self) -> Method:
        settings: dict[str, Settings] = {
            "gptq": GptqSettings(self.damping, self.act_order, self.range),
            "signround": SignRoundSettings(self.steps, self.rate, self.batch, self.range),
        }
        return Method(self.method, self.range, self.tokens, self.spill, settings.get(self.method))

    def check_env(self, env: Env) -> None:
        if self.method != "round":
            self._method.text(env)

    def run(self, program: Program, env: Env) -> Program:
        wanted = [s for s in sites(program) if s.role in ROLES[self.where]]
        if not wanted:
            return refuse_nothing_there(program, "head" if self.where == "head" else "linear", env)

        def encode_all(encodings: Mapping[str, Encoding]) -> Mapping[str, QTensor]:
            return by(program, encodings, self._method, env, self.name)

        return store(program, wanted, self.encoding, encode_all, env)
