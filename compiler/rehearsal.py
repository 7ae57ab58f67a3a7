"""What the passes would do, without the weights: the same passes on tensors that have a shape and no contents.

So a recipe that cannot be is refused before hours are spent, and the bytes are known before a model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import psutil
import torch
from torch import Tensor

from drawplate.digest import tensors_of
from drawplate.encoding import Grid, QTensor
from drawplate.errors import DrawplateError, Refusal
from drawplate.options import spec
from drawplate.passbase import Env, Fact, Pass, cannot_be_done
from drawplate.program import Program, Weight, rounded

if TYPE_CHECKING:
    from drawplate.backendbase import Backend, ByteRow
    from drawplate.capture import Assets


@dataclass(frozen=True)
class Step:
    """One pass. weight_bytes: of the program after it, in memory. live_bytes: of all tensors that are alive then."""

    pass_: str
    weight_bytes: int
    live_bytes: int


@dataclass(frozen=True)
class Rehearsal:
    """program: after all passes, its weights without contents; None if some pass could not go on without them, and
    then steps end before it and notes say which it was."""

    program: Program | None
    steps: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()

    def ask(self, backend: Backend, assets: Assets) -> tuple[list[Refusal], tuple[ByteRow, ...]]:
        """Why the backend will not take the program, and the bytes it will write; nothing if that is not known."""
        if self.program is None:
            return [], ()
        return backend.refusals(self.program, assets), backend.predict(self.program, assets)


def without_contents(program: Program) -> Program:
    """The same program with its weights on the meta device: dtype and shape, no contents, no memory."""
    return replace(program, weights=MappingProxyType({name: _hollow(w) for name, w in program.weights.items()}))


def hollow(program: Program) -> bool:
    """Have its weights no contents, as in a rehearsal?"""
    return any(t.is_meta for w in program.weights.values() for t in tensors_of(w))


def rehearse(program: Program, passes: Iterable[Pass], env: Env) -> Rehearsal:
    """Run the passes on the program without its contents, unmeasured. Refusals land in env.refusals.

    A pass that makes tensors of its own should make them on its weights' device, or what follows is not known.
    Raises PassError for what a pass refuses in so many words, such as a group size that does not divide.
    """
    now = start = without_contents(program)
    steps: list[Step] = []
    for pass_ in passes:
        try:
            after = rounded(pass_.run(now, env))
        except DrawplateError as error:
            raise cannot_be_done(pass_, error) from error
        except Exception as error:  # noqa: BLE001  (a look at contents that are not there fails in many ways)
            note = f"what follows {spec(pass_)!r} is not known beforehand: it looks at the weights"
            return Rehearsal(None, tuple(steps), (f"{note} ({type(error).__name__})",))
        kept = {f.name for f in pass_.preserves} & now.facts
        after = replace(after, facts=frozenset(kept | {f.name for f in pass_.provides}))
        steps.append(Step(spec(pass_), in_memory([after]), in_memory([start, now, after])))
        now = after
    return Rehearsal(now, tuple(steps))


def facts_that_hold(program: Program, passes: Iterable[Pass]) -> frozenset[str]:
    """The program's facts, and those of the required ones that hold of it unclaimed.

    A fact about contents cannot be looked at where there are none; it then counts as not holding.
    """
    required = {fact.name: fact for p in passes for fact in p.requires}
    return program.facts | {name for name, fact in required.items() if _holds(fact, program)}


def in_memory(programs: Sequence[Program]) -> int:
    """Bytes of the weights of these programs together, shared tensors once."""
    tensors = {id(t): t.nbytes for p in programs for w in p.weights.values() for t in tensors_of(w)}
    return sum(tensors.values())


def predicted_peak(program: Program, steps: Iterable[Step]) -> int:
    """Bytes that compiling takes at its largest: this process as it is, the tensors that are alive, and room to work.

    A pass, or a proof around it, works on one weight at a time. Eight times the largest weight is what that comes to:
    before and after, dequantised, in float64, and what the allocator does not give back. Measured on a model of 135 M
    parameters with a tied table of 113 MB: 2.5 GB where this says 2.2.
    """
    largest = max((w.nbytes for w in program.weights.values()), default=0)
    live = max((s.live_bytes for s in steps), default=in_memory([program]))
    return psutil.Process().memory_info().rss + live + 8 * largest


def _holds(fact: Fact, program: Program) -> bool:
    try:
        return not fact.holds(program)
    except Exception:
        if hollow(program):
            return False
        raise


def _hollow(weight: Weight) -> Weight:
    if isinstance(weight, QTensor):
        grid = Grid(_hollow_tensor(weight.grid.scale), _hollow_tensor(weight.grid.zero_point))
        return replace(weight, codes=_hollow_tensor(weight.codes), grid=grid)
    return _hollow_tensor(weight)


def _hollow_tensor(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device="meta")
