"""What MatMulNBits, GatherBlockQuantized and DequantizeLinear hold, as data.

Source: ONNX Runtime 1.32 (contrib_ops/cpu/quantization/matmul_nbits.cc, gather_block_quantized.cc) and ONNX's operators
of opset 21 (4-bit tensors, DequantizeLinear in blocks) and 25 (2-bit tensors).
"""

from __future__ import annotations

from typing import Literal

from drawplate.encoding import Encoding, per_channel
from drawplate.target import Choice, Target

Form = Literal["nbits", "qdq"]
"""How linears with stored weights are written: com.microsoft.MatMulNBits, or ONNX's own DequantizeLinear and MatMul."""

BITS = (8, 4, 2)
SMALLEST = 16
"""The smallest block of MatMulNBits and of GatherBlockQuantized; each is a power of two."""
TWO_BITS = 256
"""The largest block of MatMulNBits with 2 bits."""
GROUP = 32
"""The smallest that is offered to allocators: with f16 scales a group of 16 costs a whole bit for each weight."""

# 8 bits are offered without zero points alone: with so many steps they gain nothing. The kernels hold these too.
GROUPED = tuple(
    Choice(Encoding(bits, (1, GROUP), symmetric, scale="f16"), group_multiple=GROUP)
    for bits, symmetric in ((8, True), (4, True), (4, False), (2, True), (2, False))
)
ROWS = Choice(per_channel(8))
OPERATOR = 300  # bytes; measured on 30 layers: 224 kB beside the weights

NBITS = Target(
    name="onnx",
    menu={"linear": (*GROUPED, Choice(None)), "embedding": (*GROUPED, ROWS, Choice(None))},
    operator_bytes=OPERATOR,
)
QDQ = Target(
    name="onnx",
    menu={
        "linear": (*GROUPED, *(Choice(per_channel(bits)) for bits in BITS), Choice(None)),
        "embedding": (GROUPED[0], ROWS, Choice(None)),
    },
    operator_bytes=OPERATOR,
)
TARGETS: dict[Form, Target] = {"nbits": NBITS, "qdq": QDQ}


def linear_why_not(encoding: Encoding, shape: tuple[int, ...], form: Form) -> tuple[str, str] | None:
    """Why a linear's weight [out, in] cannot be stored so, and what would help; None if it can."""
    if encoding.bits not in BITS:
        return f"ONNX has no integers of {encoding.bits} bits", "use 8, 4 or 2 bits"
    rows, run = encoding.blocks(shape)
    if shape[1] % run:
        return _shorter(run)
    if form == "qdq":
        if rows == 1 or (rows, run) == shape:
            return None
        return f"DequantizeLinear has no blocks of {rows}x{run}", "use block=1xN or 1x-1"
    if rows != 1:
        return f"MatMulNBits has no scale for {rows} rows together", "use block=1x32"
    return _block_why_not(encoding, run, "MatMulNBits")


def table_why_not(encoding: Encoding, shape: tuple[int, ...], form: Form) -> tuple[str, str] | None:
    """Why a table [entries, width] cannot be stored so, and what would help; None if it can."""
    if encoding.bits not in BITS:
        return f"ONNX has no integers of {encoding.bits} bits", "use 8, 4 or 2 bits"
    rows, run = encoding.blocks(shape)
    if shape[1] % run:
        return _shorter(run)
    if rows != 1:
        return f"rows are read one by one, and {rows} share a scale", "use block=1x-1 or 1x32"
    if encoding.bits == 8:
        return None
    if form == "qdq":
        return f"ONNX's Gather reads no tensors of {encoding.bits} bits", "use 8 bits, or onnx{form=nbits}"
    return _block_why_not(encoding, run, "GatherBlockQuantized")


def is_block(run: int) -> bool:
    """A power of two, and large enough?"""
    return run >= SMALLEST and run & (run - 1) == 0


def _block_why_not(encoding: Encoding, run: int, operator: str) -> tuple[str, str] | None:
    most = TWO_BITS if encoding.bits == 2 and operator == "MatMulNBits" else run
    if is_block(run) and run <= most:
        return None
    found = f"a whole row of {run}" if encoding.block[1] == -1 else f"{run}"
    blocks = f"16, 32, 64, .. {most}" if run > most else "16, 32, 64, .."
    other = ", or onnx{form=qdq}" if operator == "MatMulNBits" else ", or 8 bits"
    return f"{operator} has blocks of {blocks}, not of {found}", f"use block=1x32{other}"


def _shorter(run: int) -> tuple[str, str]:
    return f"the last group of a row is shorter than {run}, which is not written here", "use a group that divides rows"
