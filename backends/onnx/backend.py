"""The backend: what it holds, what it refuses, and the door to emitting and running."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from drawplate.backendbase import Backend, ByteRow, Emission
from drawplate.backends.onnx.target import NBITS, TARGETS, Form

if TYPE_CHECKING:
    from drawplate.errors import Refusal
    from drawplate.program import Program
    from drawplate.runtime import Runnable
    from drawplate.sources.source import Assets
    from drawplate.target import Target


@dataclass(frozen=True)
class OnnxBackend(Backend):
    """ONNX for stock ONNX Runtime: `model.onnx`, its tensors in `model.onnx.data`. With a cache onnxruntime-genai
    generates from the folder as it is.

    form: stored linears as com.microsoft.MatMulNBits, or as ONNX's own DequantizeLinear in front of MatMul. All numbers
    are the program's either way. accuracy_level: of MatMulNBits. 0 and 1 compute in float32, as the program does; 2, 3
    and 4 let the runtime round what linears read to f16, bf16 or blocks of int8, of which the program knows nothing, so
    that verifying fails. position_ids: an input that says where each token stands; without it that follows from the
    attention mask.
    """

    form: Form = "nbits"
    accuracy_level: int = 0
    position_ids: bool = False

    name: ClassVar[str] = "onnx"
    target: ClassVar[Target] = NBITS
    opener: ClassVar[str] = "drawplate.backends.onnx.runner:open_artifact"

    def __post_init__(self) -> None:
        if not 0 <= self.accuracy_level <= 4:
            raise ValueError(f"accuracy_level {self.accuracy_level}: MatMulNBits has 0 to 4")
        if self.accuracy_level and self.form == "qdq":
            raise ValueError("accuracy_level is MatMulNBits'; form=qdq has none")
        object.__setattr__(self, "target", TARGETS[self.form])  # the menu is the form's

    def check(self, program: Program) -> list[Refusal]:
        """Encodings without an operator, operators without a rule, attention of odd shapes."""
        from drawplate.backends.onnx.legality import refusals

        return refusals(program, self.form)

    def predict(self, program: Program, assets: Assets) -> tuple[ByteRow, ...]:
        """The rows that emit() will give, exactly; of a program that is refused, its weights as they are."""
        from drawplate.backends.onnx.emit import account
        from drawplate.backends.onnx.lower import lower

        if self.refusals(program):
            return super().predict(program, assets)
        return account(program, assets, self, lower(program, self))

    def emit(self, program: Program, into: Path, assets: Assets) -> Emission:
        """model.onnx and model.onnx.data, and the model's tokenizer and configuration beside them."""
        from drawplate.backends.onnx.emit import emit

        return emit(program, into, assets, self)

    def open(self, folder: Path, threads: int | None = None) -> Runnable:
        """The artifact in ONNX Runtime."""
        from drawplate.backends.onnx.runner import open_artifact

        return open_artifact(folder, threads)
