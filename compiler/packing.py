"""Bit-packing of unsigned codes along the last axis: dense, lowest bits first, rows padded to whole bytes."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 1 << 20  # elements taken apart into single bits at once
WORD = 4  # bytes of an int32


def pack(codes: Tensor, bits: int) -> Tensor:
    """codes: [.., n] of 0 .. 2^bits - 1 -> uint8 [.., ceil(n * bits / 8)], element 0 in the lowest bits.

    >>> pack(torch.tensor([1, 2, 15], dtype=torch.uint8), 4).tolist()
    [33, 15]
    """
    n = codes.shape[-1]
    width = (n * bits + 7) // 8
    if bits == 8:
        return codes.to(torch.uint8)
    if 8 % bits == 0:
        per = 8 // bits
        padded = torch.nn.functional.pad(codes.to(torch.uint8), (0, width * per - n))
        out = padded[..., ::per].clone()
        for i in range(1, per):
            out |= padded[..., i::per] << (i * bits)
        return out
    rows = codes.reshape(-1, n)
    parts = [_pack_bits(part, bits, width) for part in rows.split(max(1, CHUNK // max(1, n)))]
    return torch.cat(parts).reshape(*codes.shape[:-1], width)


def unpack(packed: Tensor, bits: int, n: int) -> Tensor:
    """The inverse: uint8 [.., ceil(n * bits / 8)] -> codes [.., n], uint8 (int32 above 8 bits).

    >>> unpack(torch.tensor([33, 15], dtype=torch.uint8), 4, 3).tolist()
    [1, 2, 15]
    """
    if bits == 8:
        return packed[..., :n]
    if 8 % bits == 0:
        per = 8 // bits
        out = torch.empty(*packed.shape[:-1], packed.shape[-1] * per, dtype=torch.uint8)
        for i in range(per):
            out[..., i::per] = (packed >> (i * bits)) & ((1 << bits) - 1)
        return out[..., :n]
    rows = packed.reshape(-1, packed.shape[-1])
    parts = [_unpack_bits(part, bits, n) for part in rows.split(max(1, CHUNK // max(1, n)))]
    return torch.cat(parts).reshape(*packed.shape[:-1], n)


def pack_words(codes: Tensor, bits: int) -> Tensor:
    """codes: [.., n] of 0 .. 2^bits - 1 -> int32 [.., ceil(n * bits / 32)]: pack(), its bytes taken four at a time, the
    first the lowest, so that a code may begin in one word and end in the next.

    >>> pack_words(torch.arange(8, dtype=torch.uint8), 4).tolist() == [0x76543210]
    True
    """
    packed = pack(codes, bits)
    padded = torch.nn.functional.pad(packed, (0, -packed.shape[-1] % WORD))
    return padded.flatten().view(torch.int32).reshape(*padded.shape[:-1], padded.shape[-1] // WORD)


def unpack_words(words: Tensor, bits: int, n: int) -> Tensor:
    """The inverse: int32 [.., ceil(n * bits / 32)] -> codes [.., n] of uint8."""
    packed = words.flatten().view(torch.uint8).reshape(*words.shape[:-1], words.shape[-1] * WORD)
    return unpack(packed, bits, n)


def _pack_bits(codes: Tensor, bits: int, width: int) -> Tensor:
    """codes: [rows, n] -> uint8 [rows, width], by one byte per bit: [rows, n, bits] -> [rows, width, 8]."""
    rows, n = codes.shape
    stream = torch.zeros(rows, width * 8, dtype=torch.uint8)
    planes = stream[:, : n * bits].unflatten(1, (n, bits))
    for b in range(bits):
        planes[..., b] = (codes >> b) & 1
    byte = stream.unflatten(1, (width, 8))
    out = byte[..., 0].clone()
    for b in range(1, 8):
        out |= byte[..., b] << b
    return out


def _unpack_bits(packed: Tensor, bits: int, n: int) -> Tensor:
    """The inverse of _pack_bits."""
    rows, width = packed.shape
    stream = torch.empty(rows, width * 8, dtype=torch.uint8)
    byte = stream.unflatten(1, (width, 8))
    for b in range(8):
        byte[..., b] = (packed >> b) & 1
    planes = stream[:, : n * bits].unflatten(1, (n, bits)).to(torch.uint8 if bits <= 8 else torch.int32)
    out = planes[..., 0].clone()
    for b in range(1, bits):
        out |= planes[..., b] << b
    return out
