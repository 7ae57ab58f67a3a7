"""A stored weight as GPTQ's four tensors, and back. Pure functions; K inputs, N outputs, G groups, b bits.

qweight int32 [K b / 32, N] is packed along K and qzeros int32 [G, N b / 32] along N, lowest bits first; a code that
does not end in its word goes on in the next (of 3 bits, 32 fill three words). scales [G, N]; g_idx int32 [K], the group
of each input. Codes and zero points are 0 .. 2^b - 1; version 1 stores zero points less one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from drawplate.encoding import SCALE_DTYPES, Encoding, Grid, QTensor, ScaleDtype, offset
from drawplate.packing import pack_words, unpack_words

WORD = 32  # bits
SCALES: dict[torch.dtype, ScaleDtype] = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32"}


@dataclass(frozen=True)
class Parts:
    """The four tensors."""

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor
    g_idx: Tensor

    def named(self, module: str) -> Mapping[str, Tensor]:
        """As a checkpoint has them."""
        return {f"{module}.{key}": value for key, value in vars(self).items()}


def shapes(shape: tuple[int, ...], bits: int, group: int) -> dict[str, tuple[int, ...]]:
    """Of the four tensors of a weight [N, K]. group: -1 is a whole row.

    >>> shapes((64, 128), 3, 32)
    {'qweight': (12, 64), 'qzeros': (4, 6), 'scales': (4, 64), 'g_idx': (128,)}
    """
    n, k = shape
    groups = -(-k // (k if group == -1 else group))
    words = -(-k * bits // WORD), -(-n * bits // WORD)
    return {"qweight": (words[0], n), "qzeros": (groups, words[1]), "scales": (groups, n), "g_idx": (k,)}


def to_parts(weight: QTensor, version: int) -> Parts:
    """A weight [N, K] in groups along K. Scales are written in the dtype that the encoding says."""
    encoding, (_, k) = weight.encoding, weight.shape
    codes = offset(weight.integers(), encoding)
    zeros = stored_zeros(weight, version).to(torch.uint8).t().contiguous()
    return Parts(
        qweight=pack_words(codes, encoding.bits).t().contiguous(),
        qzeros=pack_words(zeros, encoding.bits),
        scales=weight.grid.scale.t().to(SCALE_DTYPES[encoding.scale]).contiguous(),
        g_idx=plain_order(k, encoding.block[1]),
    )


def stored_zeros(weight: QTensor, version: int) -> Tensor:
    """Zero points [N, G] as a file of this version has them; -1 where version 1 has none for it."""
    low, _ = weight.encoding.range
    return weight.grid.zero_point - low - (1 if version == 1 else 0)


def codes_of(qweight: Tensor, bits: int, k: int) -> Tensor:
    """uint8 [N, K]."""
    return unpack_words(qweight.t(), bits, k)


def zeros_of(qzeros: Tensor, bits: int, n: int, version: int) -> Tensor:
    """uint8 [N, G]. What version 1 stores as 2^b - 1 is read as 0, which it was before one was taken off."""
    zeros = unpack_words(qzeros, bits, n).t()
    return (zeros + 1) & ((1 << bits) - 1) if version == 1 else zeros


def plain_order(k: int, group: int) -> Tensor:
    """g_idx of groups that lie one behind the other; the last one may be shorter. group: -1 is all inputs."""
    return (torch.arange(k) // (k if group == -1 else group)).to(torch.int32)


def from_parts(parts: Parts, bits: int, group: int, version: int, *, symmetric: bool) -> QTensor:
    """The inverse of to_parts, of parts in plain order. Codes are signed, as passes make them.

    symmetric: store it so if every zero point is the middle code.
    """
    (k,), n = parts.g_idx.shape, parts.scales.shape[1]
    middle = 1 << (bits - 1)
    zeros = zeros_of(parts.qzeros, bits, n, version)
    symmetric = symmetric and bool((zeros == middle).all())
    ragged = group != -1 and k % group > 0
    encoding = Encoding(bits, (1, group), symmetric, scale=SCALES[parts.scales.dtype], ragged=ragged)
    grid = Grid(parts.scales.t().float().contiguous(), (zeros.float() - middle).contiguous())
    return QTensor(offset(codes_of(parts.qweight, bits, k), encoding, back=True), grid, encoding, (n, k))


def dequantized(parts: Parts, bits: int, version: int) -> Tensor:
    """scales[g_idx[i]] (q - z), float32 [N, K]: for inputs in any order of groups."""
    (k,), n = parts.g_idx.shape, parts.scales.shape[1]
    order = parts.g_idx.long()
    zeros = zeros_of(parts.qzeros, bits, n, version).float()[:, order]
    return (codes_of(parts.qweight, bits, k).float() - zeros) * parts.scales.t().float()[:, order]
