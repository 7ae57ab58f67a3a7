"""The backend: a Hugging Face folder with GPTQ's tensors in place of the weights that are stored as integers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from drawplate.backendbase import Backend, ByteRow, Emission
from drawplate.backends.gptq.target import TARGET
from drawplate.encoding import ScaleDtype

if TYPE_CHECKING:
    from drawplate.errors import Refusal
    from drawplate.passbase import Pass
    from drawplate.program import Program
    from drawplate.runtime import Runnable
    from drawplate.sources.source import Assets
    from drawplate.target import Target


@dataclass(frozen=True)
class GptqBackend(Backend):
    """GPTQ checkpoints for GPTQModel, transformers and vLLM.

    version: of the layout. 1 stores zero points less one and has none for 0; 2 stores them as they are. auto: 1 where
    all weights are symmetric, which every loader takes; else 2, since GPTQModel takes asymmetric weights of version 1
    only from itself. floats: the dtype of matrices that stay floating point, and what loaders compute in; norms and
    biases are float32. shard: the most bytes of tensors in one file.
    """

    version: Literal["auto", "1", "2"] = "auto"
    floats: ScaleDtype = "f16"
    shard: int = 4_000_000_000

    name: ClassVar[str] = "gptq"
    target: ClassVar[Target] = TARGET

    def __post_init__(self) -> None:
        if self.shard < 1:
            raise ValueError(f"shard={self.shard} is not above 0")

    def check(self, program: Program) -> list[Refusal]:
        """Encodings that the format has no words for."""
        from drawplate.backends.gptq.legality import refusals

        return refusals(program)

    def check_source(self, program: Program, assets: Assets) -> list[Refusal]:
        """Every difference from the graph that a loader builds from config.json."""
        from drawplate.checkpoints.matching import Match, match

        found = match(program, assets)
        return list(found.refusals) if isinstance(found, Match) else [found]

    def legalise(self) -> tuple[Pass, ...]:
        """What is stored in fewer bits than it is computed with is rounded first, and measured so."""
        from drawplate.checkpoints.narrowing import NarrowFloats

        return (NarrowFloats(self.floats),)

    def predict(self, program: Program, assets: Assets) -> tuple[ByteRow, ...]:
        """Exactly the rows that emit() will give; of a program that is refused, its weights alone."""
        from drawplate.backends.gptq.emit import layout

        refused = bool(self.refusals(program, assets))
        return super().predict(program, assets) if refused else layout(program, assets, self).rows()

    def emit(self, program: Program, into: Path, assets: Assets) -> Emission:
        """The folder."""
        from drawplate.backends.gptq.emit import emit

        return emit(program, into, assets, self)

    def open(self, folder: Path) -> Runnable:
        """What is in the files, read back and run as a Program: slow, exact, and enough to measure with."""
        from drawplate.backends.gptq.reader import GptqReader
        from drawplate.runtime import ProgramRunner

        return ProgramRunner(GptqReader().read(folder, folder.name).program)
