"""fold-lora: adapters into the weights that they stand beside, or kept there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from drawplate.activations import ENCODE, encode_inputs
from drawplate.analysis.adapters import Adapter, adapters
from drawplate.canonical.match import is_call, through_casts
from drawplate.costs import has_logits, samples
from drawplate.encoding import Encoding, QTensor, RangeMethod, per_channel
from drawplate.errors import PassError
from drawplate.facts import INTERFACE, NUMBERS, WEIGHTS_FLOAT, WEIGHTS_PACKED
from drawplate.finalists import rises
from drawplate.folding import folded, residuals
from drawplate.invariants import ROUNDS, SAME_FUNCTION, SIGNATURE
from drawplate.options import refuse_numbers
from drawplate.passbase import Env, Fact, Invariant, Pass
from drawplate.program import Program, rounded
from drawplate.quantising import Method, by, by_rounding
from drawplate.rehearsal import hollow


@dataclass(frozen=True)
class FoldLora(Pass):
    """What becomes of y = W x + scale * B (A x) in the model that is run.

    method: "keep", the product stays beside W; with bits=8 as integers, each row of A and B with a scale, and where
    what W reads is rounded, what A and B read is rounded too. The others give y = (W + scale * B A) x: "exact" where W
    is floating point, which is the same function; where W is integers the sum is stored again under W's encoding, to
    nearest by "round", by "gptq" so that errors are made up for on the calibration text (see quantize-weights). An
    adapter that was trained inside the rounding has nothing left to fold: train-weights{rank=16}.

    What is lost is told, and is in folding.json: of each weight the residual, relative to what the adapter added to it,
    and where there is a text the KL to the model as it came in.

    bits: of adapters that are kept; 0 leaves them floating point. range: how grids are found. tokens: of the text.
    spill: bytes of activations that stay in memory.
    """

    method: Literal["keep", "exact", "round", "gptq"] = "exact"
    bits: int = 0
    range: RangeMethod = "mse"
    tokens: int = 8192
    spill: int = 4 << 30

    name: ClassVar = "fold-lora"
    keeps: ClassVar[tuple[Invariant, ...]] = (SIGNATURE, SAME_FUNCTION)

    def __post_init__(self) -> None:
        if self.tokens < 2:
            raise ValueError(f"tokens={self.tokens} is not above 1")
        refuse_numbers(self, not_negative=("bits", "spill"))
        if self.bits > 8 or (self.bits and self.method != "keep"):
            raise ValueError(f"bits={self.bits} is of method=keep, and 8 at most; folded, a weight keeps its encoding")

    @property
    def preserves(self) -> frozenset[Fact]:  # type: ignore[override]
        """What is stored here is not packed, and was floating point."""
        return (NUMBERS | INTERFACE) - {WEIGHTS_PACKED, *([WEIGHTS_FLOAT] if self.bits else [])}

    @property
    def promises(self) -> tuple[Invariant, ...]:
        """Storing again changes the function."""
        if self.bits:
            return (SIGNATURE, ROUNDS)
        return self.keeps if self.method in ("keep", "exact") else (SIGNATURE,)

    def check_env(self, env: Env) -> None:
        if self.method == "gptq":
            self._method.text(env)

    @property
    def _method(self) -> Method:
        return Method("gptq" if self.method == "gptq" else "round", self.range, self.tokens, self.spill)

    def run(self, program: Program, env: Env) -> Program:
        found = adapters(program)
        if not found:
            raise PassError("there are no adapters to fold", why="no linear has a low-rank product beside it")
        if self.method == "keep" and not self.bits:
            return program
        after = self._kept(program, found, env) if self.method == "keep" else self._folded(program, found, env)
        if not hollow(program):
            self._report(program, after, env)
        return after

    def _kept(self, program: Program, found: tuple[Adapter, ...], env: Env) -> Program:
        """A and B as integers, read as what they stand beside reads."""
        stored = [n for a in found for n in (a.down, a.up) if isinstance(program.weights[n], QTensor)]
        if stored:
            raise PassError("an adapter is stored as integers already", where=stored[0], fix="store adapters once")
        encodings = {name: per_channel(self.bits) for a in found for name in (a.down, a.up)}
        editor = program.edit()
        editor.weights.update(by_rounding(program, encodings, self.range, env, self.name))
        for place in (place for a in found for place in a.places):
            encoded: Any = place.linear.args[0]
            for linear in (place.inner, place.outer):
                copy = editor.of(linear)
                copy.args = (copy.args[0], through_casts(copy.args[1]), *copy.args[2:])
            if is_call(encoded, ENCODE):
                inner = editor.of(place.inner)
                inner.args = (editor.of(encoded), *inner.args[1:])
                encode_inputs(editor, [place.outer], Encoding.parse(encoded.args[1]))
        return editor.finish()

    def _folded(self, program: Program, found: tuple[Adapter, ...], env: Env) -> Program:
        """Without the products; what was integers is stored again."""
        _refuse_shared(program, found)
        stored = {a.base: w.encoding for a in found if isinstance(w := program.weights[a.base], QTensor)}
        if stored and self.method == "exact":
            raise PassError(
                "an adapter cannot be folded into integers exactly",
                where=next(iter(stored)),
                why="the sum is not on the weight's grid",
                fix="store the sum again, fold-lora{method=gptq} or {method=round}, or keep the adapters",
            )
        after = folded(program)
        if not stored:
            return after
        editor = after.edit()
        editor.weights.update(by(after, stored, self._method, env, self.name))
        return editor.finish()

    def _report(self, program: Program, after: Program, env: Env) -> None:
        """What was lost, to the user and as a record."""
        now = rounded(after)
        lost, harm = residuals(program, now), None
        worst = max(lost, key=lambda name: lost[name])
        said = f"{len(lost)} {self._done}; the residual of the worst, {worst}, is {lost[worst]:.3g} of its change"
        if env.calibration is not None and not program.state and has_logits(program):
            (harm,) = rises("kl", program, [now], samples("kl", program, env.calibration, self.tokens, env.seed))
            said += f"; KL to the model as it came in {harm:.3g} per token of the calibration text"
        env.keep("folding", data={"method": self.method, "residuals": lost, "kl": harm})
        env.tell(f"{self.name}: {said}")

    @property
    def _done(self) -> str:
        if self.method == "keep":
            return f"adapters stored in {self.bits} bits"
        return "adapters folded" if self.method == "exact" else "weights stored again"


def _refuse_shared(program: Program, found: tuple[Adapter, ...]) -> None:
    """Raise PassError where a weight is read with an adapter here, and without it or with another there."""
    for adapter in found:
        beside = {place.linear for place in adapter.places}
        if set(program.readers(adapter.base)) != beside:
            raise PassError(
                "an adapter cannot be folded into a weight that is read without it too",
                where=adapter.base,
                fix="keep the adapters",
            )
