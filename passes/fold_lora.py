"""fold-lora: adapters into the weights that they stand beside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from drawplate.analysis.adapters import Adapter, adapters
from drawplate.costs import has_logits, samples
from drawplate.encoding import QTensor, RangeMethod, as_read
from drawplate.errors import PassError
from drawplate.facts import INTERFACE, NUMBERS, WEIGHTS_PACKED
from drawplate.finalists import rises
from drawplate.invariants import SAME_FUNCTION, SIGNATURE
from drawplate.options import refuse_numbers
from drawplate.passbase import Env, Invariant, Pass
from drawplate.program import Program
from drawplate.quantising import Method, by
from drawplate.rehearsal import hollow


@dataclass(frozen=True)
class FoldLora(Pass):
    """y = W x + scale * B (A x) becomes y = (W + scale * B A) x, and the products are gone. To keep adapters beside a
    model at run time, leave this pass out.

    method: "exact" where W is floating point, which is the same function. Where W is stored as integers, the sum is
    stored again under W's encoding: rounded to nearest by "round", by "gptq" so that errors are made up for on the
    calibration text (see quantize-weights). What is lost by that is told: as the error of each weight, relative to what
    the adapter changed in it, and where there is a text as KL to the model with its adapters.

    range: how new grids are found. tokens: of the text. spill: bytes of activations that stay in memory.
    """

    method: Literal["exact", "round", "gptq"] = "exact"
    range: RangeMethod = "mse"
    tokens: int = 8192
    spill: int = 4 << 30

    name: ClassVar = "fold-lora"
    preserves: ClassVar = (NUMBERS | INTERFACE) - {WEIGHTS_PACKED}
    keeps: ClassVar[tuple[Invariant, ...]] = (SIGNATURE, SAME_FUNCTION)

    def __post_init__(self) -> None:
        if self.tokens < 2:
            raise ValueError(f"tokens={self.tokens} is not above 1")
        refuse_numbers(self, not_negative=("spill",))

    @property
    def promises(self) -> tuple[Invariant, ...]:
        """Storing again changes the function."""
        return self.keeps if self.method == "exact" else (SIGNATURE,)

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
        _refuse_shared(program, found)
        stored = {a.base: w for a in found if isinstance(w := program.weights[a.base], QTensor)}
        if stored and self.method == "exact":
            raise PassError(
                "an adapter cannot be folded into integers exactly",
                where=next(iter(stored)),
                why="the sum is not on the weight's grid",
                fix="store the sum again, fold-lora{method=gptq} or {method=round}, or keep the adapters",
            )
        folded = _folded(program, found)
        if not stored:
            return folded
        encodings = {name: weight.encoding for name, weight in stored.items()}
        editor = folded.edit()
        editor.weights.update(by(folded, encodings, self._method, env, self.name))
        after = editor.finish()
        if not hollow(program):
            env.tell(self._lost(program, folded, after, stored, env))
        return after

    def _lost(self, program: Program, folded: Program, after: Program, stored: dict[str, QTensor], env: Env) -> str:
        weights: dict[str, Any] = dict(folded.weights)
        errors = {}
        for name, before in stored.items():
            again: Any = after.weights[name]
            changed = weights[name].float() - before.dequantize()
            errors[name] = float((weights[name] - again.dequantize()).norm() / changed.norm().clamp(min=1e-30))
        worst = max(errors, key=lambda name: errors[name])
        env.keep("folding", data=errors)
        said = (
            f"{len(errors)} weights stored again; the error of the worst, {worst}, is {errors[worst]:.3g} of its change"
        )
        if env.calibration is None or program.state or not has_logits(program):
            return f"{self.name}: {said}"
        (harm,) = rises("kl", program, [after], samples("kl", program, env.calibration, self.tokens, env.seed))
        return f"{self.name}: {said}; KL to keeping the adapters {harm:.3g} per token of the calibration text"


def _refuse_shared(program: Program, found: tuple[Adapter, ...]) -> None:
    """Raise PassError where a weight is read with an adapter here, and without it or with another there."""
    for adapter in found:
        beside = {linear for _, linear in adapter.sums}
        if set(program.readers(adapter.base)) != beside:
            raise PassError(
                "an adapter cannot be folded into a weight that is read without it too",
                where=adapter.base,
                fix="keep the adapters",
            )


def _folded(program: Program, found: tuple[Adapter, ...]) -> Program:
    """Without the products, each in the weight beside it, as a number."""
    editor = program.edit()
    weights: dict[str, Any] = dict(program.weights)
    for adapter in found:
        base = weights[adapter.base]
        change: Tensor = adapter.scale * (
            as_read(weights[adapter.up]).double() @ as_read(weights[adapter.down]).double()
        )
        if isinstance(base, QTensor):
            whole = base.dequantize(torch.float64)
            editor.weights[adapter.base] = (whole + change).float()
        else:
            editor.wide(adapter.base, base.double() + change)
        for total, linear in adapter.sums:
            editor.replace(editor.of(total), editor.of(linear))
    return editor.finish()
