"""The `drawplate::` operators: what the canonical graph says in one op where ATen needs many.

Each is an ordinary torch custom operator, runnable, traceable and (where it has no state) differentiable.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from drawplate.encoding import Encoding, Grid, dequantize, dynamic_grid, fake_quantize_dynamic, quantize
from drawplate.errors import DrawplateError
from drawplate.hadamard import apply

_lib = torch.library.Library("drawplate", "DEF")
_lib.define("rotary(Tensor x, Tensor cos, Tensor sin, bool interleaved=False) -> Tensor")
_lib.define("window_mask(Tensor q, int window) -> Tensor")
_lib.define("encode(Tensor x, str encoding) -> Tensor")
_lib.define(
    "cached_attention(Tensor q, Tensor k, Tensor v, Tensor(a!) key_cache, Tensor(b!) value_cache, "
    "Tensor position, float scale, int window=0) -> Tensor"
)
_lib.define(
    "cached_attention.encoded(Tensor q, Tensor k, Tensor v, Tensor(a!) key_cache, Tensor(b!) value_cache, "
    "Tensor position, float scale, int window, Tensor(c!) key_scale, Tensor(d!) key_zero_point, "
    "Tensor(e!) value_scale, Tensor(f!) value_zero_point, str encoding) -> Tensor"
)
_lib.define("last_position(Tensor x) -> Tensor")
_lib.define("hadamard(Tensor x, int block, bool transpose=False) -> Tensor")


def rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864, eq. 34).

    x: [b, h, s, d]; cos, sin: [b or 1, s, d], each angle standing twice: in halves (cat(f, f)) or,
    interleaved, in pairs (repeat_interleave(f, 2)). Returns x * cos + rotate(x) * sin.
    """
    if interleaved:
        turned = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    else:
        a, b = x.chunk(2, dim=-1)
        turned = torch.cat((-b, a), dim=-1)
    return x * cos.unsqueeze(1) + turned * sin.unsqueeze(1)


def window_mask(q: Tensor, window: int) -> Tensor:
    """q: [b, h, s, d] -> bool [s, s], True where position j may be read from i: i - window < j <= i."""
    n = q.shape[-2]
    i = torch.arange(n, device=q.device)
    distance = i[:, None] - i[None, :]
    return (distance >= 0) & (distance < window)


def encode(x: Tensor, encoding: str) -> Tensor:
    """x as its stored form reads back: fake-quantised under a dynamic encoding, differentiable."""
    return fake_quantize_dynamic(x, Encoding.parse(encoding))


def cached_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    position: Tensor,
    scale: float,
    window: int = 0,
) -> Tensor:
    """Causal attention over a cache: writes k and v at `position`, then attends to everything up to each
    query.

    q: [1, h, s, d]; k, v: [1, h_kv, s, d]; caches: [1, context, h_kv, d], written in place; position: int64
    [s], consecutive. window: 0 for all earlier positions, else only the last `window`. Returns [1, h, s, d].
    Raises DrawplateError where the positions do not fit the cache.
    """
    new, read = _spans(position, key_cache, window)
    key_cache[:, new].copy_(k.transpose(1, 2))
    value_cache[:, new].copy_(v.transpose(1, 2))
    return _attend(q, key_cache[:, read], value_cache[:, read], new, read, scale, window)


def encoded_cached_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    position: Tensor,
    scale: float,
    window: int,
    key_scale: Tensor,
    key_zero_point: Tensor,
    value_scale: Tensor,
    value_zero_point: Tensor,
    encoding: str,
) -> Tensor:
    """cached_attention over caches of integers: k and v are encoded as they are written, and read back as that.

    caches: int8 [1, context, h_kv, d]; scales f32 and zero points int8 [1, context, h_kv, 1]; all written in place.
    The rest as cached_attention's.
    """
    kind = Encoding.parse(encoding)
    new, read = _spans(position, key_cache, window)
    rows = []
    for x, *stored in ((k, key_cache, key_scale, key_zero_point), (v, value_cache, value_scale, value_zero_point)):
        x = x.transpose(1, 2)
        grid = dynamic_grid(x, kind)
        for cache, part in zip(stored, (quantize(x, grid, kind), grid.scale, grid.zero_point), strict=True):
            cache[:, new].copy_(part)
        codes, scales, zeros = (cache[:, read] for cache in stored)
        rows.append(dequantize(codes, Grid(scales, zeros), kind).to(q.dtype))
    return _attend(q, rows[0], rows[1], new, read, scale, window)


def _spans(position: Tensor, cache: Tensor, window: int) -> tuple[slice, slice]:
    """The rows of a cache [1, context, ..] that are written, and those that are read."""
    start, n, context = int(position[0]), len(position), cache.shape[1]
    end = start + n
    if start < 0 or end > context:
        raise DrawplateError(
            f"positions {start} to {end - 1} do not fit a cache of {context}",
            where="drawplate.cached_attention",
            fix="use a shorter text, or compile with a larger context",
        )
    return slice(start, end), slice(max(0, start - window + 1) if window else 0, end)


def _attend(q: Tensor, keys: Tensor, values: Tensor, new: slice, read: slice, scale: float, window: int) -> Tensor:
    """q: [1, h, s, d] at the positions `new`; keys, values: [1, m, h_kv, d] at the positions `read`."""
    i = torch.arange(new.start, new.stop, device=q.device)[:, None]
    j = torch.arange(read.start, read.stop, device=q.device)[None, :]
    mask = (j <= i) & (i - j < window) if window else j <= i
    gqa = q.shape[1] != keys.shape[2]
    k, v = keys.transpose(1, 2), values.transpose(1, 2)
    return scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=gqa)


def last_position(x: Tensor) -> Tensor:
    """x: [b, s, d] -> [b, 1, d], the last position only: a head over it costs one row in prefill."""
    return x[:, -1:]


def hadamard(x: Tensor, block: int, transpose: bool = False) -> Tensor:
    """x: [.., n], every run of `block` channels times H / sqrt(block): an orthogonal rotation that costs no weights.
    transpose: times its inverse."""
    return apply(x, block, transpose=transpose)


def _cached_attention_shape(q: Tensor, k: Tensor, v: Tensor, *_: object) -> Tensor:
    """[1, h, s, d of the values]."""
    return q.new_empty((*q.shape[:-1], v.shape[-1]))


for _fn in (rotary, window_mask, encode, last_position, hadamard):
    _lib.impl(_fn.__name__, _fn, "CompositeImplicitAutograd")
_lib.impl("cached_attention", cached_attention, "CompositeExplicitAutograd")
_lib.impl("cached_attention.encoded", encoded_cached_attention, "CompositeExplicitAutograd")
for _name in ("cached_attention", "cached_attention.encoded"):
    torch.library.register_fake(f"drawplate::{_name}", _cached_attention_shape, lib=_lib)

CACHED_ATTENTION = (torch.ops.drawplate.cached_attention.default, torch.ops.drawplate.cached_attention.encoded)
"""Attention over a cache, however it is stored. The first eight arguments mean the same in both."""
