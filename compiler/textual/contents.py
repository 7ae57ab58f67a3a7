"""Contents for the weights of a text that is meant to run: from a seed, or written out."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from drawplate.encoding import Encoding, Grid, QTensor, code_dtype, encode
from drawplate.errors import DrawplateError
from drawplate.packing import pack
from drawplate.program import Weight

LIMIT = 1 << 27  # elements; a text program is for tests


def shape_only(shape: tuple[int, ...], kind: torch.dtype | Encoding, *, packed: bool = False) -> Weight:
    """A weight without contents, on the meta device."""
    if isinstance(kind, torch.dtype):
        return torch.empty(shape, dtype=kind, device="meta")
    if packed:
        codes = torch.empty((*shape[:-1], (shape[-1] * kind.bits + 7) // 8), dtype=torch.uint8, device="meta")
    else:
        codes = torch.empty(shape, dtype=code_dtype(kind), device="meta")
    scale = torch.empty(kind.scale_shape(shape), device="meta")
    return QTensor(codes, Grid(scale, torch.empty_like(scale)), kind, shape, packed)


def seeded(shape: tuple[int, ...], kind: torch.dtype | Encoding, seed: int, *, packed: bool = False) -> Weight:
    """Normal numbers over sqrt(the last axis's length), so that a chain of linears keeps its scale; a vector
    (a norm's weight, a bias) is 1 + a tenth of normal numbers. Integers: -8 .. 7, 0 .. 15 if unsigned."""
    count = math.prod(shape)
    if count > LIMIT:
        raise DrawplateError(f"{count} elements from a seed", why=f"contents in a text have at most {LIMIT} elements")
    generator = torch.Generator().manual_seed(seed)
    if isinstance(kind, torch.dtype) and not (kind.is_floating_point or kind.is_complex):
        low, high = (0, 2) if kind == torch.bool else (-8, 8) if kind.is_signed else (0, 16)
        return torch.randint(low, high, shape, generator=generator).to(kind)
    values = torch.randn(shape, generator=generator)
    values = values / math.sqrt(max(shape[-1], 1)) if len(shape) > 1 else 1 + values / 10
    return stored(values, kind, packed=packed)


def literal(values: Any, shape: tuple[int, ...], kind: torch.dtype | Encoding, *, packed: bool = False) -> Weight:
    """Nested lists of numbers: the values that the weight stands for, encoded if it has an encoding."""
    try:
        tensor = torch.tensor(values, dtype=kind if isinstance(kind, torch.dtype) else torch.float32)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise DrawplateError("these contents are not a tensor", why=str(error).splitlines()[0]) from None
    if tuple(tensor.shape) != shape:
        raise DrawplateError(f"the contents have shape {list(tensor.shape)}, the weight has {list(shape)}")
    return stored(tensor, kind, packed=packed)


def stored(values: Tensor, kind: torch.dtype | Encoding, *, packed: bool = False) -> Weight:
    """values as the dtype or encoding keeps them."""
    if isinstance(kind, torch.dtype):
        return values.to(kind)
    q = encode(values, kind)
    if not packed:
        return q
    low, _ = kind.range
    return QTensor(pack(q.codes.to(torch.int32) - low, kind.bits), q.grid, kind, q.shape, packed=True)
