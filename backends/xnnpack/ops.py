"""Operators that exist between a Program and a .pte only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import drawplate.ops  # noqa: F401  (registers drawplate::)

_lib = torch.library.Library("drawplate_xnnpack", "DEF")
_lib.define(
    "attention(Tensor q, Tensor k, Tensor v, Tensor(a!) key_cache, Tensor(b!) value_cache, Tensor position, "
    "float scale, int window=0) -> Tensor"
)
_lib.define(
    "attention.encoded(Tensor q, Tensor k, Tensor v, Tensor(a!) key_cache, Tensor(b!) value_cache, Tensor position, "
    "float scale, int window, Tensor(c!) key_scale, Tensor(d!) key_zero_point, Tensor(e!) value_scale, "
    "Tensor(f!) value_zero_point, str encoding) -> Tensor"
)
_lib.define("region(Tensor[] inputs, str key) -> Tensor[]")

Shapes = Callable[[Sequence[Tensor]], list[Tensor]]
_regions: dict[str, Shapes] = {}


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    position: Tensor,
    scale: float,
    window: int = 0,
) -> Tensor:
    """drawplate.cached_attention with positions before heads, as the runtime's kernel takes it.

    q: [1, s, h, d]; k, v: [1, s, h_kv, d]; caches: [1, context, h_kv, d], written in place; position: int64 [s].
    Returns [1, s, h, d].
    """
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out = torch.ops.drawplate.cached_attention(q, k, v, key_cache, value_cache, position, scale, window)
    return out.transpose(1, 2).contiguous()


def encoded_attention(q: Tensor, k: Tensor, v: Tensor, *rest: object) -> Tensor:
    """drawplate.cached_attention.encoded with positions before heads, of queries that are encoded here too.

    q, k, v and result as attention's; the rest as drawplate.cached_attention.encoded's.
    """
    q, k, v = (t.transpose(1, 2) for t in (torch.ops.drawplate.encode(q, rest[-1]), k, v))
    return torch.ops.drawplate.cached_attention.encoded(q, k, v, *rest).transpose(1, 2).contiguous()


def region(inputs: Sequence[Tensor], key: str) -> list[Tensor]:
    """A part of the program that XNNPACK runs, seen from outside: only the shapes of its results are known."""
    return _regions[key](inputs)


class Regions:
    """Registers the shape functions of one program's regions for as long as it is being lowered."""

    def __init__(self, shapes: dict[str, Shapes]) -> None:
        self._shapes = shapes

    def __enter__(self) -> None:
        _regions.update(self._shapes)

    def __exit__(self, *_: object) -> None:
        for key in self._shapes:
            del _regions[key]


for _name, _kernel in (("attention", attention), ("attention.encoded", encoded_attention)):
    _lib.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"drawplate_xnnpack::{_name}", lambda q, *_: torch.empty_like(q), lib=_lib)
_lib.impl("region", region, "CompositeExplicitAutograd")
torch.library.register_fake("drawplate_xnnpack::region", region, lib=_lib)

ATTENTION = (torch.ops.drawplate_xnnpack.attention.default, torch.ops.drawplate_xnnpack.attention.encoded)
"""Attention over a cache, however it is stored. The first eight arguments mean the same in both."""
