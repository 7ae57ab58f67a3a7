"""rotate: orthogonal changes of basis, fused into weights or online, where the graph allows them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from drawplate.analysis.rotations import Plan, plan
from drawplate.calibration import Calibration
from drawplate.digest import digest
from drawplate.encoding import Encoding, per_token
from drawplate.errors import PassError, grouped
from drawplate.facts import INTERFACE, WEIGHTS_FLOAT
from drawplate.invariants import SAME_FUNCTION, SIGNATURE
from drawplate.learning.endtoend import Descent, learn_end_to_end
from drawplate.learning.layerwise import Settings, learn_layerwise
from drawplate.learning.matrices import exact, load_matrices, stored
from drawplate.learning.network import Rounding
from drawplate.learning.state import Aside
from drawplate.options import spec
from drawplate.passbase import Env, Pass
from drawplate.program import Program
from drawplate.rehearsal import hollow
from drawplate.turning import fixed_matrices, turn_program

LEARNED = ("whip", "kurtosis", "cayley")
FLOAT_BITS = 16  # bits from which on nothing is rounded while learning


@dataclass(frozen=True)
class Rotate(Pass):
    """Turn the channels of activations, so that outliers spread over all of them and rounding costs less; what reads
    them is turned back, so the function stays (QuaRot: Ashkboos et al. 2024, arXiv:2404.00456; SpinQuant: Liu et al.
    2024, arXiv:2405.16406). Run fold-norms first: a norm's weight between two bases is in the way.

    kind: "hadamard" (with random signs; a random orthogonal matrix where no Hadamard matrix of that order is known,
    which is told) or "random" orthogonal. Learned from there, on a calibration text: "whip" and "kurtosis" flatten what
    activations look like, layer by layer (DartQuant, arXiv:2511.04063; KurTail, arXiv:2503.01483); "cayley" lessens the
    whole model's error under rounding (SpinQuant). "load": learned before, `path`. What is learned or loaded is kept
    with the artifact, as rotations.safetensors.

    r1: residual streams. r2: values, per key-value head. r3: queries and keys, online, for a quantised cache. r4:
    inputs of linears behind a pointwise function, online. Learning is of r1 and r2.

    maps: the most explicit d x d products that turning one residual stream may cost. One is what a table costs that is
    embedding and head at once: logits = E' M n with E' = E R and M = R^T diag(g) R, so the table stays one. Where R
    is a Hadamard matrix the product is two fast transforms and one factor per channel, and takes no room.
    block: channels that r4 turns together; 0 all, or as many as a Hadamard matrix is known for.

    Of learning: steps; rate, of the first step, falling along a cosine; tokens of the calibration text that are read;
    batch, per step: rows of each matrix's activations (whip, kurtosis) or windows of the text (cayley). none is the
    kind's own default. weights, group, activations: what cayley learns under: bits of linears' weights (symmetric) and
    what shares a scale along [out, in]; bits of their inputs (per token, asymmetric). 16 bits are not rounded.
    """

    kind: Literal["hadamard", "random", "whip", "kurtosis", "cayley", "load"] = "hadamard"
    r1: bool = True
    r2: bool = True
    r3: bool = False
    r4: bool = False
    maps: int = 1
    block: int = 0
    path: Path | None = None
    steps: int | None = None
    rate: float | None = None
    tokens: int | None = None
    batch: int | None = None
    weights: int = 4
    group: tuple[int, ...] = (1, 32)
    activations: int = 8

    name: ClassVar = "rotate"
    requires: ClassVar = frozenset({WEIGHTS_FLOAT})
    preserves: ClassVar = INTERFACE | {WEIGHTS_FLOAT}
    keeps: ClassVar = (SIGNATURE, SAME_FUNCTION)

    def __post_init__(self) -> None:
        if (self.kind == "load") != (self.path is not None):
            raise ValueError("path is the file of kind=load: give both or neither")
        for name in ("maps", "block"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"{name}={value} is below 0")
        for name in ("steps", "rate", "tokens", "batch"):
            value = getattr(self, name)
            if value is not None and self.kind not in LEARNED:
                raise ValueError(f"{name}={value} is of learning, and kind={self.kind} learns nothing")
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value} is not above 0")
        for name in ("weights", "activations"):
            if not 2 <= getattr(self, name) <= FLOAT_BITS:
                raise ValueError(f"{name}={getattr(self, name)} is not 2 to {FLOAT_BITS} bits")

    @property
    def reads(self) -> tuple[Path, ...]:
        """The file of kind=load."""
        return () if self.path is None else (self.path,)

    def check_env(self, env: Env) -> None:
        if self.kind in LEARNED:
            self._text(env)

    def _text(self, env: Env) -> Calibration:
        why = "rotations are learned on what the model's activations look like"
        return env.text(f"kind={self.kind} learns from", why, "use kind=hadamard")

    def run(self, program: Program, env: Env) -> Program:
        found = plan(program, r1=self.r1, r2=self.r2, r3=self.r3, r4=self.r4, maps=self.maps, block=self.block)
        self._refuse_misfit(found)
        for refusal in found.refusals:
            env.refuse(refusal)
        matrices = self._matrices(program, found, env)
        dense = env.target is not None and not env.target.rotates
        return turn_program(program, found, matrices, lambda names: env.progress(names, self.name), dense=dense)

    def _refuse_misfit(self, found: Plan) -> None:
        """A block that was asked for and fits nothing is a mistake, and not one site's affair."""
        refused = [r for r in found.refusals if r.op == "r4"]
        if self.r4 and self.block and refused and not any(o.kind == "r4" for o in found.online):
            fix = "leave block out, or give one that divides the channels and has a Hadamard matrix"
            raise PassError(f"block={self.block} fits nowhere", why="\n".join(grouped(refused)), fix=fix)

    def _matrices(self, program: Program, found: Plan, env: Env) -> dict[str, Tensor]:
        if self.path is not None:
            kept = stored(load_matrices(self.path, found))
        else:
            fixed, notes = fixed_matrices(found, "random" if self.kind == "random" else "hadamard", env.seed)
            for note in notes:
                env.refuse(note)
            if self.kind in ("hadamard", "random") or not found.rotations:
                return fixed
            # Without contents (a rehearsal) there is nothing to learn, and any matrices will do that are, like what is
            # learned, nobody's fast transform.
            plain = {r.key: torch.eye(r.width).repeat(r.count, 1, 1) for r in found.rotations}
            kept = stored(plain if hollow(program) else self._learned(program, found, fixed, env))
        env.keep("rotations", kept)
        return exact(kept)

    def _learned(self, program: Program, found: Plan, start: dict[str, Tensor], env: Env) -> dict[str, Tensor]:
        text = self._text(env)
        windows = text.windows
        aside = Aside(env.checkpoints, digest(spec(self), text.digest, str(env.seed)))
        if self.kind == "cayley":
            return learn_end_to_end(program, found, start, windows, self.rounding, self._descent(), aside, env)
        return learn_layerwise(program, found, start, windows, self._settings(), aside, env)

    @property
    def rounding(self) -> Rounding:
        """What cayley learns under."""
        return Rounding(
            Encoding(self.weights, self.group) if self.weights < FLOAT_BITS else None,
            per_token(self.activations) if self.activations < FLOAT_BITS else None,
        )

    def _settings(self) -> Settings:
        return Settings(self.kind, self.steps or 200, self.rate or 1e-2, self.tokens or 8192, self.batch or 2048)

    def _descent(self) -> Descent:
        return Descent(self.steps or 30, self.rate or 1.5, self.tokens or 1 << 16, self.batch or 1)
