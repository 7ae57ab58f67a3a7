"""train-lora: the adapters of a program, trained end to end while all else stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from drawplate.analysis.adapters import adapter_weights
from drawplate.encoding import QTensor
from drawplate.errors import PassError
from drawplate.facts import INTERFACE, NUMBERS
from drawplate.leaves import Leaf, Whole
from drawplate.passbase import Env
from drawplate.peft import adapter_records
from drawplate.program import Program
from drawplate.rehearsal import hollow
from drawplate.trainpass import TrainingPass


@dataclass(frozen=True)
class TrainLora(TrainingPass):
    """Train the low-rank products that add-lora put beside linears; the model they stand beside stays as it is, rounded
    or not (LoRA: Hu et al. 2021, arXiv:2106.09685). They are left with the artifact in PEFT's format too.

    loss: "kl", to what the original model says of the calibration text; "loss", of the text's own next tokens;
    "answers", of a task or of conversations (--calibration-task), what was asked being given; "dpo", that right answers
    become likelier than wrong ones, against the program as it comes in (direct preference optimisation: Rafailov et al.
    2023, arXiv:2305.18290, eq. 7). So train-lora{loss=answers},train-lora{loss=dpo} is Meta's order. beta: of dpo.

    tokens: of the text, or of questions with answers. epochs: over them. rate: AdamW's first, falling along a cosine to
    a twentieth. batch: windows, answers or pairs of each step. held: of them, a quarter at most, are not trained on:
    the state is kept that does best there. precision: "bf16" computes products and attention in it while gradients are
    taken, for processors that are quicker so; what is trained and what chooses stay float32.
    """

    name: ClassVar = "train-lora"
    preserves: ClassVar = NUMBERS | INTERFACE

    def run(self, program: Program, env: Env) -> Program:
        names = list(adapter_weights(program))
        self.refuse_untrainable(program, names, "no linear has a low-rank product beside it", "put add-lora in front")
        adapter_records(program)  # what cannot be said to PEFT is refused before it is trained
        if hollow(program):
            return program
        editor = program.edit()
        editor.weights.update(self.trained(program, program, {n: _leaf(program, n) for n in names}, env))
        trained = editor.finish()
        env.records.extend(adapter_records(trained))
        return trained


def _leaf(program: Program, name: str) -> Leaf:
    weight = program.weights[name]
    if isinstance(weight, QTensor):
        raise PassError("an adapter that is stored as integers is not trained", where=name, fix="put add-lora behind")
    return Whole(weight)
