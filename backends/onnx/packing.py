"""Stored weights as ONNX's operators read them, and back. Pure functions on tensors; nothing here rounds anything.

Symmetric or not, signed or not: the file's codes are unsigned, code - lowest code, and zero points are shifted alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from drawplate.encoding import Grid, QTensor, offset
from drawplate.packing import pack, unpack
from drawplate.scheme import SCALE_DTYPES, Encoding, code_dtype


@dataclass(frozen=True, eq=False)
class Blocks:
    """A weight [n, k] in blocks along its rows. codes: uint8 [n, blocks, block * bits / 8], the first in the lowest
    bits. scales: [n, blocks] in the encoding's dtype. zeros: uint8 [n, ceil(blocks * bits / 8)], packed like the codes;
    None where it is symmetric, since 2^(bits - 1) is what an operator without zero points subtracts."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None


def blocks(weight: QTensor) -> Blocks:
    """As MatMulNBits reads it: B, scales and zero_points. GatherBlockQuantized reads the same with the blocks of a row
    in one."""
    n, count = weight.grid.scale.shape
    packed = None if weight.encoding.symmetric else zeros(weight)
    return Blocks(weight.pack().codes.reshape(n, count, -1), scales(weight), packed)


def unblocks(stored: Blocks, encoding: Encoding, shape: tuple[int, int]) -> QTensor:
    """The inverse, bit for bit: the weight under this encoding."""
    n, count = stored.scales.shape
    wide = stored.scales.float()
    if stored.zeros is None:
        zero = torch.full_like(wide, (sum(encoding.range) + 1) // 2)
    else:
        zero = unpack(stored.zeros, encoding.bits, count).float() + encoding.range[0]
    packed = QTensor(stored.codes.reshape(n, -1), Grid(wide, zero), encoding, shape, packed=True)
    return replace(packed, codes=packed.integers(), packed=False)


def scales(weight: QTensor) -> Tensor:
    """In the dtype that the encoding names, which holds them exactly."""
    return weight.grid.scale.to(SCALE_DTYPES[weight.encoding.scale]).contiguous()


def zeros(weight: QTensor) -> Tensor:
    """Zero points [n, blocks] in `bits` bits each: uint8 [n, ceil(blocks * bits / 8)]."""
    encoding = weight.encoding
    return pack(offset(_as_codes(weight.grid.zero_point, encoding), encoding), encoding.bits)


def plain(codes: Tensor, encoding: Encoding) -> Tensor:
    """Codes or zero points, of any shape, as a TensorProto of 8, 4 or 2 bits holds them: signed as they are, densely
    packed over the whole tensor, the first in the lowest bits. uint8 [ceil(count * bits / 8)]."""
    flat = _as_codes(codes, encoding).reshape(-1)
    mask = (1 << encoding.bits) - 1
    return pack(flat.view(torch.uint8) & mask, encoding.bits)


def unplain(stored: Tensor, encoding: Encoding, shape: tuple[int, ...]) -> Tensor:
    """The inverse: codes of this shape."""
    count = int(torch.tensor(shape).prod())
    unsigned = unpack(stored, encoding.bits, count)
    if not encoding.signed:
        return unsigned.reshape(shape)
    spare = 8 - encoding.bits  # to the top and back, which brings the sign along
    return ((unsigned << spare).view(torch.int8) >> spare).reshape(shape)


def _as_codes(numbers: Tensor, encoding: Encoding) -> Tensor:
    """Whole numbers in the dtype of codes."""
    kind: Any = code_dtype(encoding)
    return numbers.to(kind).contiguous()
