"""The backend: what it holds, what it refuses, and the door to emitting and running."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from drawplate.backendbase import Backend, ByteRow, Emission
from drawplate.backends.xnnpack.target import TARGET

if TYPE_CHECKING:
    from drawplate.errors import Refusal
    from drawplate.passbase import Pass
    from drawplate.program import Program
    from drawplate.runtime import Runnable
    from drawplate.sources.source import Assets
    from drawplate.target import Target


@dataclass(frozen=True)
class XnnpackBackend(Backend):
    """ExecuTorch's XNNPACK delegate, for Arm and x86 CPUs: `model.pte`, which any stock ExecuTorch runtime loads.

    last_row: let a prompt's last position alone through what follows the last attention. tokens: the most that is fed
    at once; the runtime keeps memory for so many, and feeds a longer prompt in pieces. batch: the most rows at once,
    for models that take several. group_scales: how the file holds the scales of 4-bit groups. They are bf16 numbers
    either way, since the kernels compute with these; f32 is the form of files from before 2025, for runtimes that know
    no other, and takes two bytes more for each.
    """

    last_row: bool = True
    tokens: int = 512
    batch: int = 1
    group_scales: Literal["bf16", "f32"] = "bf16"

    name: ClassVar[str] = "xnnpack"
    target: ClassVar[Target] = TARGET
    opener: ClassVar[str] = "drawplate.backends.xnnpack.runner:open_artifact"
    # ExecuTorch's pool calls torch's matrix products in its attention; with OpenMP threads in each of its threads a
    # prompt of 64 tokens takes 22 ms more (a build for a phone has no OpenMP).
    openmp: ClassVar[int | None] = 1

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.batch < 1:
            raise ValueError(f"{self.tokens} tokens and {self.batch} rows at once: at least one of each")

    def check(self, program: Program) -> list[Refusal]:
        """Encodings without a kernel, rounded values that are read as if they were not, attention of odd shapes."""
        from drawplate.backends.xnnpack.legality import refusals

        return refusals(program)

    def legalise(self) -> tuple[Pass, ...]:
        """What pays on this runtime and changes no result."""
        from drawplate.backends.xnnpack.last_rows import TakeLastRow

        return (TakeLastRow(),) if self.last_row else ()

    def predict(self, program: Program, assets: Assets) -> tuple[ByteRow, ...]:
        """The rows that emit() will give, within a fraction of a per cent."""
        from drawplate.backends.xnnpack.prediction import predict
        from drawplate.backends.xnnpack.widen import widened

        return predict(widened(program), assets, self.group_scales)

    def emit(self, program: Program, into: Path, assets: Assets) -> Emission:
        """model.pte, and the model's tokenizer and configuration beside it."""
        from drawplate.backends.xnnpack.bounds import bounded
        from drawplate.backends.xnnpack.emit import emit
        from drawplate.backends.xnnpack.widen import narrow, widened

        emission = emit(bounded(widened(program), self.batch, self.tokens), into, assets, self.group_scales)
        if not (kept := narrow(program)):
            return emission
        dtypes = " and ".join(sorted({str(program.weights[n].dtype).removeprefix("torch.") for n in kept}))  # type: ignore[union-attr]
        note = (
            f"{len(kept)} weights kept in {dtypes} are float32 in the file, the same numbers: XNNPACK reads no others"
        )
        return replace(emission, notes=(*emission.notes, note))

    def open(self, folder: Path, threads: int | None = None) -> Runnable:
        """The artifact in ExecuTorch's runtime. threads: for the whole process, before anything is loaded."""
        from drawplate.backends.xnnpack.runner import open_artifact

        return open_artifact(folder, threads)
