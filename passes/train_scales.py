"""train-scales: the scales of stored weights, trained end to end while their integers stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from drawplate.aims import samples_for
from drawplate.analysis.sites import sites
from drawplate.digest import digest, program_digest
from drawplate.encoding import QTensor
from drawplate.facts import INTERFACE, NUMBERS, WEIGHTS_QUANTISED
from drawplate.invariants import SIGNATURE
from drawplate.learning.state import Aside
from drawplate.options import refuse_numbers
from drawplate.passbase import Env, Invariant, Pass
from drawplate.program import Program
from drawplate.rehearsal import hollow
from drawplate.training import Network, Scales, Settings, train


@dataclass(frozen=True)
class TrainScales(Pass):
    """Train the scales of the weights that are stored as integers, end to end; integers and zero points stay as they
    are (E2E-QP of EfficientQAT: Chen et al. 2024, arXiv:2407.11062, sec. 3.3). So a stored model is tuned to a text,
    and stays what it is in bytes.

    loss: "kl", to what the original model says of the calibration text; or the "loss" of the text's own next tokens,
    which tunes the model to the text; or of the "answers" of a task or of conversations (--calibration-task), what was
    asked being given. where: "body", all linears but the head, or "all", tables too. tokens: of the text, or of
    questions with answers. epochs: over them. rate: AdamW's first, in shares of each scale, falling along a cosine to a
    twentieth. batch: windows of each step. held: windows that are not trained on: the state is kept that does best on
    them.
    """

    loss: Literal["kl", "loss", "answers"] = "kl"
    where: Literal["body", "all"] = "all"
    tokens: int = 32768
    epochs: int = 1
    rate: float = 0.002
    batch: int = 2
    held: int = 4

    name: ClassVar = "train-scales"
    requires: ClassVar = frozenset({WEIGHTS_QUANTISED})
    preserves: ClassVar = NUMBERS | INTERFACE
    keeps: ClassVar[tuple[Invariant, ...]] = (SIGNATURE,)
    slow: ClassVar = True

    def __post_init__(self) -> None:
        if self.tokens < 2:
            raise ValueError(f"tokens={self.tokens} is not above 1")
        refuse_numbers(self, positive=("epochs", "rate", "batch"), not_negative=("held",))

    def check_env(self, env: Env) -> None:
        env.text("train-scales needs", "it trains on what the model says of it")

    def run(self, program: Program, env: Env) -> Program:
        if hollow(program):
            return program
        text = env.text("train-scales needs", "it trains on what the model says of it")
        body = {s.name for s in sites(program) if s.role == "linear"}
        wanted = {
            n: w for n, w in program.weights.items() if isinstance(w, QTensor) and (self.where == "all" or n in body)
        }
        network = Network(program, {name: Scales(weight) for name, weight in wanted.items()})
        samples = samples_for(self.loss, program, env.original, text, self.tokens)
        settings = Settings(self.epochs, self.rate, self.batch, self.held)
        aside = Aside(env.checkpoints, digest(repr(self), program_digest(program), text.digest, str(env.seed)))
        editor = program.edit()
        editor.weights.update(train(network, samples, settings, aside, env, self.name))
        return editor.finish()
