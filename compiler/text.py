"""The textual IR: a program as text, and back.

    // drawplate text 1
    program mlp(%x: f32[b, 64]) facts{norms.folded} where 1 <= b <= 64 {
      weight @up.weight : i4[128, 64] block 1x32 sym scale bf16
      weight @down.weight : f32[64, 128] = seed(3)
      %0 : f32[b, 64]            = aten.rms_norm(%x, [64])
      %1 : f32[b, 128]           = aten.linear(%0, @up.weight)  // up
      ...
      return %4
    }

A value is one line: its name, its type, the operator (`aten.linear` is `torch.ops.aten.linear.default`),
the arguments, and as a comment the module it came from. Lengths are numbers or expressions over the dims of
the `where` clause. Weight contents are never printed. In a text that is meant to run a weight may say
`= seed(3)` (see `textual.contents`) or `= [[1, -1], [1, 1]]`; without either it is a shape only (a meta
tensor).
"""

from __future__ import annotations

from drawplate.textual.parser import parse_program
from drawplate.textual.printer import print_program
from drawplate.textual.structure import differences, same_structure

__all__ = ["differences", "parse_program", "print_program", "same_structure"]
