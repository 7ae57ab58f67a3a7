"""How a tensor's elements are stored as integers, in words and in bytes. No tensor is touched here: see encoding.py."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from drawplate.errors import DrawplateError

ScaleDtype = Literal["f32", "f16", "bf16"]
Rule = Literal["xnnpack", "fbgemm"]
SCALE_DTYPES: dict[str, torch.dtype] = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Encoding:
    """How a tensor's elements are stored as integers: x is approximately scale * (q - zero_point).

    bits: 1 to 16. block: one entry per axis of the tensor, elements of that axis that share a scale; -1 spans
    the axis. For a weight [out, in]: (-1, -1) per tensor, (1, -1) per output channel, (1, 32) groups of 32
    along in. For an activation only the last axes are given: block (-1,) with dynamic=True is one scale per
    token. symmetric: zero point fixed at the middle of the range. signed: codes in [-2^(b-1), 2^(b-1)-1],
    else [0, 2^b-1]. scale: dtype that the scale is stored in; it is rounded to it *before* the integers are
    chosen. dynamic: scale and zero point are computed from the value itself when the program runs. rule: whose
    arithmetic does that, to the last bit (see encoding.dynamic_grid): XNNPACK's, in front of its linears, or FBGEMM's,
    which ExecuTorch's own kernels have. ragged: the last block of an axis may be shorter, as GPTQ's format has
    it.
    """

    bits: int
    block: tuple[int, ...]
    symmetric: bool = True
    signed: bool = True
    scale: ScaleDtype = "f32"
    dynamic: bool = False
    rule: Rule = "xnnpack"
    ragged: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 16:
            raise DrawplateError(f"an encoding of {self.bits} bits", why="integers have 1 to 16 bits here")
        if not self.block or any(b == 0 or b < -1 for b in self.block):
            raise DrawplateError(f"block {self.block}", why="each entry is a positive length or -1 for the whole axis")
        if self.scale not in SCALE_DTYPES:
            raise DrawplateError(f"scale dtype {self.scale!r}", why=f"one of {', '.join(SCALE_DTYPES)}")
        if self.rule != "xnnpack" and (self.symmetric or not self.dynamic):
            raise DrawplateError(f"the rule {self.rule!r}", why="it is for dynamic asymmetric encodings")

    @property
    def range(self) -> tuple[int, int]:
        """Lowest and highest code."""
        low = -(1 << (self.bits - 1)) if self.signed else 0
        return low, low + (1 << self.bits) - 1

    def __str__(self) -> str:
        """`i4 block 1x32 sym scale bf16`; parse() reads it back."""
        sign = "i" if self.signed else "u"
        block = "x".join(map(str, self.block)) + " ragged" * self.ragged
        symmetry = "sym" if self.symmetric else "asym"
        rule = "" if self.rule == "xnnpack" else f" {self.rule}"
        dynamic = f" dynamic{rule}" if self.dynamic else ""
        return f"{sign}{self.bits} block {block} {symmetry} scale {self.scale}{dynamic}"

    @classmethod
    def parse(cls, text: str) -> Encoding:
        """The inverse of str(). Raises DrawplateError on anything else."""
        m = _PATTERN.fullmatch(text.strip())
        if m is None:
            raise DrawplateError(f"not an encoding: {text!r}", fix="write for example 'i4 block 1x32 sym scale bf16'")
        block = tuple(int(b) for b in m["block"].split("x"))
        scale: Any = m["scale"]
        rule: Any = m["rule"] or "xnnpack"
        words = (m["sym"] == "sym", m["sign"] == "i", scale, m["dyn"] is not None, rule, m["ragged"] is not None)
        return cls(int(m["bits"]), block, *words)

    def blocks(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Block lengths for a tensor of this shape, -1 resolved; leading axes not named have blocks of 1.

        Raises DrawplateError where a block does not divide its axis, and is not ragged, or the tensor has too few axes.
        """
        if len(shape) < len(self.block):
            raise DrawplateError(
                f"a block of {len(self.block)} axes for a tensor of {len(shape)}",
                where=f"tensor of shape {list(shape)}, encoding '{self}'",
                fix="give one entry per axis of the tensor",
            )
        full = (1,) * (len(shape) - len(self.block)) + self.block
        out = tuple(n if b == -1 else b for n, b in zip(shape, full, strict=True))
        for axis, (n, b) in enumerate(zip(shape, out, strict=True)):
            if b not in (1, n) and n % b and not self.ragged:
                groups = [g for g in (16, 32, 64, 128, 256) if n % g == 0]
                raise DrawplateError(
                    f"a group size of {b} does not divide axis {axis} of length {n}",
                    where=f"tensor of shape {list(shape)}, encoding '{self}'",
                    fix=(f"use a group of {', '.join(map(str, groups))}, or " if groups else "use ")
                    + "-1 for the whole axis",
                )
        return out

    def fits(self, shape: Sequence[int]) -> bool:
        """Can a tensor of this shape be stored under it: do its blocks divide the axes?"""
        try:
            self.blocks(shape)
        except DrawplateError:
            return False
        return True

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of scale and zero point: one entry per block on every axis."""
        return tuple(math.ceil(n / b) for n, b in zip(shape, self.blocks(shape), strict=True))

    def nbytes(self, shape: Sequence[int]) -> int:
        """Bytes of codes (packed, each row padded to bytes), of scales and, if asymmetric, of zero points."""
        groups = math.prod(self.scale_shape(shape))
        zeros = 0 if self.symmetric else (groups * self.bits + 7) // 8
        return self.code_bytes(shape) + groups * SCALE_DTYPES[self.scale].itemsize + zeros

    def code_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of the codes alone."""
        return math.prod(shape[:-1]) * ((shape[-1] * self.bits + 7) // 8)


_PATTERN = re.compile(
    r"(?P<sign>[iu])(?P<bits>\d+) block (?P<block>-?\d+(?:x-?\d+)*)(?P<ragged> ragged)? (?P<sym>sym|asym) "
    r"scale (?P<scale>f32|f16|bf16)(?P<dyn> dynamic(?: (?P<rule>fbgemm))?)?"
)


def per_channel(bits: int, **changes: Any) -> Encoding:
    """Symmetric, one fp32 scale per output channel of a weight [out, in]."""
    return replace(Encoding(bits, (1, -1)), **changes)


def per_token(bits: int = 8) -> Encoding:
    """Dynamic asymmetric activation encoding, one scale per token: what XNNPACK's qd8 kernels compute."""
    return Encoding(bits, (-1,), symmetric=False, dynamic=True)


def per_head(bits: int = 8) -> Encoding:
    """Dynamic asymmetric encoding of queries, keys and values [.., s, d]: one scale per token and head, by the rule of
    ExecuTorch's kernels."""
    return replace(per_token(bits), rule="fbgemm")


def code_dtype(encoding: Encoding) -> torch.dtype:
    """The smallest torch integer dtype that holds the encoding's codes unpacked."""
    if encoding.bits <= 8:
        return torch.int8 if encoding.signed else torch.uint8
    return torch.int16 if encoding.signed else torch.int32
