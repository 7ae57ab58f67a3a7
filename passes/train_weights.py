"""train-weights: training under the rounding that the model will have (QAT), and storing what was trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from drawplate.activations import encode_inputs
from drawplate.aims import samples_for
from drawplate.analysis.sites import sites
from drawplate.digest import digest, program_digest
from drawplate.encoding import Encoding, ScaleDtype, encode, per_channel, per_token
from drawplate.errors import PassError, Refusal
from drawplate.facts import INTERFACE, LINEARS_QUANTISED, WEIGHTS_FLOAT, WEIGHTS_QUANTISED
from drawplate.invariants import SIGNATURE, STORES
from drawplate.learning.state import Aside
from drawplate.options import refuse_numbers
from drawplate.passbase import Env, Invariant, Pass
from drawplate.program import Program
from drawplate.rehearsal import hollow
from drawplate.training import Leaf, Network, Rounded, RoundedLowRank, Settings, train


@dataclass(frozen=True)
class TrainWeights(Pass):
    """Quantisation-aware training: all weights of linears, and tables, are trained end to end while they are rounded,
    and stored as they were rounded last (Jacob et al. 2018, arXiv:1712.05877; the arithmetic of torchao's QAT). What
    linears read is rounded meanwhile too; put quantize-activations behind, which leaves that in the model.

    bits, block, symmetric, scale: of linears, see quantize-weights. vocabulary: bits of tables and the head, each row
    with a scale; 0 leaves them in floating point. activations: bits of what linears read while training, one scale per
    token; 0 rounds nothing. rank: 0 trains weights; above it a change of so low a rank is trained, W + lora_scale * B
    A, inside the rounding, so that nothing is left to fold (less memory, and less moves).

    loss: "kl", to what the original model says of the calibration text; "loss", of the text's own next tokens;
    "answers", of a task or of conversations (--calibration-task). tokens: of the text, or of questions with answers.
    epochs: over them. rate: AdamW's first, falling along a cosine to a twentieth. batch: windows of each step. held:
    windows that are not trained on: the state is kept that does best there.
    """

    bits: int = 4
    block: tuple[int, ...] = (1, 32)
    symmetric: bool = True
    scale: ScaleDtype = "f32"
    vocabulary: int = 8
    activations: int = 8
    rank: int = 0
    lora_scale: float = 2.0
    loss: Literal["kl", "loss", "answers"] = "kl"
    tokens: int = 32768
    epochs: int = 1
    rate: float = 2e-5
    batch: int = 2
    held: int = 4

    name: ClassVar = "train-weights"
    requires: ClassVar = frozenset({WEIGHTS_FLOAT})
    provides: ClassVar = frozenset({WEIGHTS_QUANTISED, LINEARS_QUANTISED})
    preserves: ClassVar = INTERFACE
    keeps: ClassVar[tuple[Invariant, ...]] = (SIGNATURE, STORES)
    slow: ClassVar = True

    def __post_init__(self) -> None:
        if self.tokens < 2:
            raise ValueError(f"tokens={self.tokens} is not above 1")
        refuse_numbers(
            self,
            positive=("epochs", "rate", "batch", "lora_scale"),
            not_negative=("held", "rank", "vocabulary", "activations"),
        )

    def check_env(self, env: Env) -> None:
        env.text("train-weights needs", "it trains on what the model says of it")

    def run(self, program: Program, env: Env) -> Program:
        encodings = self._encodings(program, env)
        if hollow(program):
            return _stored(program, encodings, list(encodings))
        text = env.text("train-weights needs", "it trains on what the model says of it")
        tables = [s.name for s in sites(program) if s.role != "linear" and s.name in encodings]
        base = _stored(program, encodings, tables if self.rank else [])
        random = torch.Generator().manual_seed(env.seed)
        leaves = {n: self._leaf(program.weights[n], e, random) for n, e in encodings.items() if n not in base.encodings}
        network = Network(self._rounding(base, encodings), leaves)
        samples = samples_for(self.loss, program, env.original, text, self.tokens)
        settings = Settings(self.epochs, self.rate, self.batch, self.held)
        aside = Aside(env.checkpoints, digest(repr(self), program_digest(program), text.digest, str(env.seed)))
        editor = base.edit()
        editor.weights.update(train(network, samples, settings, aside, env, self.name))
        return editor.finish()

    def _encodings(self, program: Program, env: Env) -> dict[str, Encoding]:
        """Of each weight that will be stored. What does not fit is refused."""
        body = Encoding(self.bits, self.block, self.symmetric, scale=self.scale)
        table = per_channel(self.vocabulary) if self.vocabulary else None
        found = {}
        for site in sites(program):
            encoding = body if site.role == "linear" else table
            if encoding is not None and encoding.fits(site.shape):
                found[site.name] = encoding
            elif encoding is not None:
                why = f"'{encoding}' does not fit its shape {list(site.shape)}"
                env.refuse(Refusal(site.name, "aten.linear", why, fix="give another block"))
        if body not in found.values():
            raise PassError(f"no weight of a linear can be stored as '{body}'", fix="give another block")
        return found

    def _rounding(self, program: Program, encodings: dict[str, Encoding]) -> Program:
        """The program in which what linears read is rounded."""
        if not self.activations:
            return program
        editor = program.edit()
        linears = [n for s in sites(program) if s.role == "linear" and s.name in encodings for n in s.nodes]
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
