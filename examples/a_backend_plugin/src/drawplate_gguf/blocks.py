"""Blocks of 32 weights as GGUF stores them. Pure functions on arrays; nothing here rounds anything.

Layouts from ggml-common.h (block_q4_0, block_q8_0): a float16 scale d, then the codes of 32 elements; w = d * q.
"""

from __future__ import annotations

import numpy as np
import torch
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from drawplate.encoding import Encoding, QTensor

GROUP = 32
Q8_0 = Encoding(8, (1, GROUP), scale="f16")
Q4_0 = Encoding(4, (1, GROUP), scale="f16")
TYPES = {Q8_0: GGMLQuantizationType.Q8_0, Q4_0: GGMLQuantizationType.Q4_0}


def q8_0(codes: NDArray[np.int8], scale: NDArray[np.float16]) -> NDArray[np.uint8]:
    """codes: [rows, n], scale: [rows, n/32] -> uint8 [rows, n/32 * 34].

    >>> q8_0(np.full((1, 32), -2, np.int8), np.array([[1.0]], np.float16))[0, :4].tolist()
    [0, 60, 254, 254]
    """
    rows, n = codes.shape
    body = codes.reshape(rows, n // GROUP, GROUP).view(np.uint8)
    return _with_scale(scale, body)


def q4_0(codes: NDArray[np.int8], scale: NDArray[np.float16]) -> NDArray[np.uint8]:
    """codes: [rows, n] of -8 .. 7, scale: [rows, n/32] -> uint8 [rows, n/32 * 18].

    Codes are stored as q + 8. Byte j of a block holds element j in its low half and element j + 16 in its high half.

    >>> q4_0(np.arange(32, dtype=np.int8)[None] // 16 - 8, np.array([[1.0]], np.float16))[0, :4].tolist()
    [0, 60, 16, 16]
    """
    rows, n = codes.shape
    halves = (codes.reshape(rows, n // GROUP, 2, GROUP // 2) + 8).astype(np.uint8)
    return _with_scale(scale, halves[:, :, 0] | (halves[:, :, 1] << np.uint8(4)))


def _with_scale(scale: NDArray[np.float16], body: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """scale: [rows, groups], body: [rows, groups, bytes] -> uint8 [rows, groups * (2 + bytes)]."""
    head = np.ascontiguousarray(scale)[..., None].view(np.uint8)
    return np.concatenate((head, body), axis=-1).reshape(scale.shape[0], -1)


def blocks(weight: QTensor) -> NDArray[np.uint8]:
    """A weight [out, in] under Q8_0 or Q4_0 -> its rows of blocks."""
    write = q8_0 if weight.encoding == Q8_0 else q4_0
    scale = weight.grid.scale.to(torch.float16)
    return write(weight.integers().contiguous().numpy(), scale.numpy())


def scales_fit(weight: QTensor) -> bool:
    """Are all scales finite in float16 and the same number there? True of every encoding that says `scale f16`
    unless a weight was as large as 65504 steps or was put together by hand."""
    half = weight.grid.scale.to(torch.float16)
    return bool(torch.isfinite(half).all()) and bool((half.to(weight.grid.scale.dtype) == weight.grid.scale).all())
