"""scale-channels: columns that read large channels larger, and what writes these channels smaller, before rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from drawplate.analysis.scalings import Scaling, scalings
from drawplate.calibration import Calibration
from drawplate.encoding import Encoding, RangeMethod, ScaleDtype
from drawplate.errors import PassError, Refusal
from drawplate.facts import INTERFACE, WEIGHTS_FLOAT
from drawplate.invariants import SAME_FUNCTION, SIGNATURE
from drawplate.passbase import Env, Pass
from drawplate.program import Editor, Program
from drawplate.rehearsal import hollow
from drawplate.scaling import Choice, Settings, choose, write_factors
from drawplate.streaming import Reading, fitting, inputs_of, read_streamed


@dataclass(frozen=True)
class ScaleChannels(Pass):
    """Multiply the columns of linears by factors per channel, and divide what writes these channels, so that large
    channels are read by columns with a smaller relative rounding error and the function stays (AWQ: Lin et al. 2023,
    arXiv:2306.00978). Run it before quantize-weights, whose encoding it should be told.

    The factors are the mean size of each channel on a calibration text to a power, one power for all linears that read
    one value: of those tried the one of least output error under the encoding. A norm's weight takes them (a norm that
    has none gets one), or the rows of a linear before a product, or of an attention's values, all queries of a head
    alike. What nothing can take is left as it is, and told.

    bits, block, symmetric, scale, range: how the weights will be stored; see quantize-weights. steps: powers that are
    tried besides 0, evenly up to 1. weights: also divide by the mean size of each column, to one less the power.
    tokens: of the text that are read. spill: bytes of activations that stay in memory, the rest goes to disk.
    """

    bits: int = 4
    block: tuple[int, ...] = (1, 32)
    symmetric: bool = True
    scale: ScaleDtype = "f32"
    range: RangeMethod = "minmax"
    steps: int = 20
    weights: bool = False
    tokens: int = 16384
    spill: int = 4 << 30

    name: ClassVar = "scale-channels"
    requires: ClassVar = frozenset({WEIGHTS_FLOAT})
    preserves: ClassVar = INTERFACE | {WEIGHTS_FLOAT}
    keeps: ClassVar = (SIGNATURE, SAME_FUNCTION)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} is not above 0")
        if self.tokens < 2:
            raise ValueError(f"tokens={self.tokens} is not above 1")
        if self.spill < 0:
            raise ValueError(f"spill={self.spill} is below 0")

    @property
    def encoding(self) -> Encoding:
        """How the weights will be stored."""
        return Encoding(self.bits, self.block, self.symmetric, scale=self.scale)

    def check_env(self, env: Env) -> None:
        self._text(env)

    def _text(self, env: Env) -> Calibration:
        return env.text("scale-channels needs", "it scales channels by how large they are on it", "leave this pass out")

    def run(self, program: Program, env: Env) -> Program:
        found = []
        for item in scalings(program):
            if isinstance(item, Refusal):
                env.refuse(item)
            else:
                found.append(item)
        self._refuse_no_fit(program, found)
        editor = program.edit()
        if hollow(program):
            for scaling in found:
                write_factors(editor, scaling, torch.ones(scaling.count, dtype=torch.float64, device="meta"))
        elif found:
            self._scale(program, editor, found, env)
        return editor.finish()

    def _scale(self, program: Program, editor: Editor, found: Sequence[Scaling], env: Env) -> None:
        """The factors of each, in the order of the graph: rows that were divided are read divided afterwards."""
        settings = Settings(self.encoding, self.range, self.steps, self.weights)
        choices: list[Choice] = []

        def seen(index: int, read: list[Reading]) -> None:
            weights: list[Any] = [editor.weights[share.weight] for share in found[index].columns]
            choices.append(choose(found[index], weights, read, settings))
            write_factors(editor, found[index], choices[-1].factors)

        inputs = list(inputs_of(program, fitting(program, self._text(env).windows, self.tokens)))
        groups = [scaling.readers for scaling in found]
        read_streamed(program, groups, inputs, seen, env, self.name, budget=self.spill)
        powers = sorted(choice.exponent for choice in choices)
        mean = sum(choice.error for choice in choices) / len(choices)
        env.tell(
            f"{self.name}: {len(choices)} values scaled, by powers from {powers[0]:g} to {powers[-1]:g}; what rounding "
            f"to '{self.encoding}' does to the outputs falls to {mean:.0%} in the mean"
        )

    def _refuse_no_fit(self, program: Program, found: Sequence[Scaling]) -> None:
        shapes = {share.weight: program.weights[share.weight].shape for s in found for share in s.columns}
        if shapes and not any(self.encoding.fits(shape) for shape in shapes.values()):
            first, shape = next(iter(shapes.items()))
            raise PassError(
                f"no weight can be stored as '{self.encoding}'",
                why=f"the block divides no shape; the first is {first} {list(shape)}",
                fix="give the bits and block that quantize-weights will have",
            )
