"""train-lora: the adapters of a program, trained end to end while all else stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from drawplate.aims import BETA, Aim, samples_for
from drawplate.analysis.adapters import adapter_weights
from drawplate.digest import digest, program_digest
from drawplate.errors import PassError
from drawplate.facts import INTERFACE, NUMBERS
from drawplate.invariants import SIGNATURE
from drawplate.learning.state import Aside
from drawplate.options import refuse_numbers
from drawplate.passbase import Env, Invariant, Pass
from drawplate.peft import adapter_records
from drawplate.program import Program
from drawplate.rehearsal import hollow
from drawplate.training import Network, Settings, Whole, train


@dataclass(frozen=True)
class TrainLora(Pass):
    """Train the low-rank products that add-lora put beside linears; the model they stand beside stays as it is, rounded
    or not (LoRA: Hu et al. 2021, arXiv:2106.09685). They are left with the artifact in PEFT's format too.

    loss: "kl", to what the original model says of the calibration text; "loss", of the text's own next tokens;
    "answers", of a task or of conversations (--calibration-task), what was asked being given; "dpo", that right answers
    become likelier than wrong ones, against the program as it comes in (direct preference optimisation: Rafailov et al.
    2023, arXiv:2305.18290, eq. 7). So train-lora{loss=answers},train-lora{loss=dpo} is Meta's order. beta: of dpo.

    tokens: of the text, or of questions with answers. epochs: over them. rate: AdamW's first, falling along a cosine to
    a twentieth. batch: windows, answers or pairs of each step. held: of them are not trained on: the state is kept that
    does best there.
    """

    loss: Aim = "kl"
    tokens: int = 32768
    epochs: int = 1
    rate: float = 2e-4
    batch: int = 4
    held: int = 8
    beta: float = BETA

    name: ClassVar = "train-lora"
    preserves: ClassVar = NUMBERS | INTERFACE
    keeps: ClassVar[tuple[Invariant, ...]] = (SIGNATURE,)
    slow: ClassVar = True

    def __post_init__(self) -> None:
        if self.tokens < 2:
            raise ValueError(f"tokens={self.tokens} is not above 1")
        refuse_numbers(self, positive=("epochs", "rate", "batch", "beta"), not_negative=("held",))

    def check_env(self, env: Env) -> None:
        env.text("train-lora needs", "it trains on what the model says of it")

    def run(self, program: Program, env: Env) -> Program:
        names = list(adapter_weights(program))
        if not names:
            raise PassError(
                "there are no adapters to train",
                why="no linear has a low-rank product beside it",
                fix="put add-lora in front",
            )
        if hollow(program):
            return program
        text = env.text("train-lora needs", "it trains on what the model says of it")
        weights = {name: program.weights[name] for name in names}
        network = Network(program, {name: Whole(weight) for name, weight in weights.items()})  # type: ignore[arg-type]
        samples = samples_for(self.loss, program, env.original, text, self.tokens, self.beta)
        settings = Settings(self.epochs, self.rate, self.batch, self.held)
        aside = Aside(env.checkpoints, digest(repr(self), program_digest(program), text.digest, str(env.seed)))
        editor = program.edit()
        editor.weights.update(train(network, samples, settings, aside, env, self.name))
        trained = editor.finish()
        env.records.extend(adapter_records(trained))
        return trained
