"""train-scales: the scales of stored weights, trained end to end while their integers stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from drawplate.analysis.sites import sites
from drawplate.encoding import QTensor
from drawplate.facts import INTERFACE, NUMBERS, WEIGHTS_QUANTISED
from drawplate.invariants import SIGNATURE, STORES
from drawplate.leaves import Scales
from drawplate.passbase import Env, Invariant
from drawplate.program import Program
from drawplate.rehearsal import hollow
from drawplate.trainpass import TrainingPass


@dataclass(frozen=True)
class TrainScales(TrainingPass):
    """Train the scales of the weights that are stored as integers, end to end; integers and zero points stay as they
    are (E2E-QP of EfficientQAT: Chen et al. 2024, arXiv:2407.11062, sec. 3.3). So a stored model is tuned to a text,
    and stays what it is in bytes.

    where: "body", all linears but the head, or "all", tables too. loss: "kl", to what the original model says of the
    calibration text; "loss", of the text's own next tokens, which tunes the model to the text; "answers", of a task or
    of conversations (--calibration-task), what was asked being given; "dpo", that right answers become likelier than
    wrong ones. beta: of dpo; see train-lora. tokens: of the text, or of questions with answers. epochs: over them.
    rate: AdamW's first, in shares of each scale, falling along a cosine to a twentieth. batch: windows, or questions,
    of each step. held: of them, a quarter at most, are not trained on: the state is kept that does best there.
    precision: see train-lora.
    """

    rate: float = 0.002
    where: Literal["body", "all"] = "all"

    name: ClassVar = "train-scales"
    requires: ClassVar = frozenset({WEIGHTS_QUANTISED})
    preserves: ClassVar = NUMBERS | INTERFACE
    keeps: ClassVar[tuple[Invariant, ...]] = (SIGNATURE, STORES)

    def run(self, program: Program, env: Env) -> Program:
        body = {s.name for s in sites(program) if s.role == "linear"}
        stored = {n: w for n, w in program.weights.items() if isinstance(w, QTensor)}
        wanted = {n: w for n, w in stored.items() if self.where == "all" or n in body}
        self.refuse_untrainable(program, wanted, "no linear but the head is stored as integers", "use where=all")
        if hollow(program):
            return program
        editor = program.edit()
        editor.weights.update(self.trained(program, program, {n: Scales(w) for n, w in wanted.items()}, env))
        return editor.finish()
