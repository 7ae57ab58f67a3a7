"""train-blocks: linears' weights as integers, trained block by block with their scales and zero points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from drawplate.analysis.sites import sites
from drawplate.blockap import Settings
from drawplate.encoding import Encoding, QTensor, RangeMethod, ScaleDtype
from drawplate.facts import ACTIVATIONS_QUANTISED, EMBEDDING_QUANTISED, INTERFACE, LINEARS_QUANTISED, WEIGHTS_QUANTISED
from drawplate.invariants import SIGNATURE, STORES
from drawplate.learning.descent import Precision
from drawplate.options import refuse_numbers
from drawplate.passbase import Env, Invariant, Pass
from drawplate.program import Program
from drawplate.quantising import Method, by, refuse_nothing_there, store


@dataclass(frozen=True)
class TrainBlocks(Pass):
    """Store the weights of linears in blocks as integers that were trained: weights, scales and zero points together,
    block by block, so that a block which reads what the stored blocks before it give makes what it made in floating
    point (Block-AP of EfficientQAT: Chen et al. 2024, arXiv:2407.11062, sec. 3.2). The head is not in a block: store it
    by quantize-weights{where=head}. allocate-bits{method=block-ap} trains what it allocated in the same way.

    bits, block, ragged, symmetric, scale, range: see quantize-weights; range is where the grids start. tokens: of the
    calibration text. epochs: over them. rate: AdamW's first, of weights, in steps of the grid. grid_rate: of scales, in
    shares of themselves, and of zero points, in codes. Both fall along a cosine to a twentieth. batch: windows of each
    step. held: windows that are not trained on: of each block the state is kept that does best on them. patience:
    epochs without a better one before a block is done. precision: see train-lora. spill: bytes of activations that stay
    in memory; the rest goes to disk.
    """

    bits: int = 4
    block: tuple[int, ...] = (1, 32)
    symmetric: bool = True
    scale: ScaleDtype = "f32"
    range: RangeMethod = Settings.range
    tokens: int = 32768
    epochs: int = Settings.epochs
    rate: float = Settings.rate
    grid_rate: float = Settings.grid_rate
    batch: int = Settings.batch
    held: int = Settings.held
    patience: int = Settings.patience
    precision: Precision = Settings.precision
    spill: int = 4 << 30
    ragged: bool = False

    name: ClassVar = "train-blocks"
    provides: ClassVar = frozenset({WEIGHTS_QUANTISED, LINEARS_QUANTISED})
    preserves: ClassVar = INTERFACE | {ACTIVATIONS_QUANTISED, EMBEDDING_QUANTISED}
    keeps: ClassVar[tuple[Invariant, ...]] = (SIGNATURE, STORES)
    slow: ClassVar = True

    def __post_init__(self) -> None:
        if self.tokens < 2:
            raise ValueError(f"tokens={self.tokens} is not above 1")
        refuse_numbers(
            self, positive=("epochs", "rate", "grid_rate", "batch", "patience"), not_negative=("held", "spill")
        )

    @property
    def encoding(self) -> Encoding:
        """How the weights will be stored."""
        return Encoding(self.bits, self.block, self.symmetric, scale=self.scale, ragged=self.ragged)

    @property
    def _method(self) -> Method:
        settings = Settings(
            self.epochs, self.rate, self.grid_rate, self.batch, self.held, self.patience, self.range, self.precision
        )
        return Method("block-ap", self.range, self.tokens, self.spill, settings)

    def check_env(self, env: Env) -> None:
        env.text("train-blocks needs", "it learns from what each block makes of what it reads", "use quantize-weights")

    def run(self, program: Program, env: Env) -> Program:
        wanted = [s for s in sites(program) if s.role == "linear"]
        if not wanted:
            return refuse_nothing_there(program, "linear", env)

        def encode_all(encodings: Mapping[str, Encoding]) -> Mapping[str, QTensor]:
            return by(program, encodings, self._method, env, self.name)

        return store(program, wanted, self.encoding, encode_all, env)
