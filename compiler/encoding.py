"""What is stored under an encoding (scheme.py says which there are), and THE reference quantiser.

Training, evaluation, packing and every backend are held against the three functions below bit for bit:
`quantize`, `dequantize`, `fake_quantize`. Where torchao's affine primitives know the scheme, these agree with
them to the last bit; a dynamic activation's grid is the runtime's (see `dynamic_grid`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from drawplate.errors import DrawplateError
from drawplate.packing import pack, unpack
from drawplate.scheme import SCALE_DTYPES, Encoding, ScaleDtype, code_dtype, per_channel, per_head, per_token

__all__ = [
    "CHUNK",
    "EPS",
    "SCALE_DTYPES",
    "Encoding",
    "Grid",
    "Layout",
    "QTensor",
    "RangeMethod",
    "ScaleDtype",
    "as_read",
    "code_dtype",
    "dequantize",
    "dynamic_grid",
    "encode",
    "fake_quantize",
    "fake_quantize_dynamic",
    "grid_from_range",
    "minmax_grid",
    "mse_grid",
    "nearest_grid",
    "offset",
    "per_channel",
    "per_head",
    "per_token",
    "quantize",
    "row_chunks",
    "wide",
]

RangeMethod = Literal["minmax", "mse"]
EPS = torch.finfo(torch.float32).eps  # the smallest scale, as in torchao's int8 and int4 schemes
FLOOR = 6.1e-5  # the smallest scale by FBGEMM's rule (SMALL_SCALE_THRESHOLD)
STEPS = 100  # of the search for a range, as in GPTQ's reference quantiser
CHUNK = 1 << 18  # elements that are quantised at once where rows do not depend on each other


@dataclass(frozen=True, eq=False)
class Grid:
    """Scale and zero point of every block. Both have Encoding.scale_shape(x.shape); zero_point holds whole
    numbers.

    The scale's values are representable in the encoding's scale dtype. Both tensors are kept in the dtype
    that the quantiser computes in: float32, or float64 for a float64 tensor.
    """

    scale: Tensor
    zero_point: Tensor


@dataclass(frozen=True, eq=False)
class QTensor:
    """A tensor stored under an encoding. codes: as x's shape, dtype code_dtype(encoding); scale, zero_point:
    see Grid.

    packed: codes are bit-packed along the last axis (see packing.py), offset so that the lowest code is 0.
    """

    codes: Tensor
    grid: Grid
    encoding: Encoding
    shape: tuple[int, ...]
    packed: bool = False

    def pack(self) -> QTensor:
        """The same tensor with its codes bit-packed: codes uint8 [.., ceil(n * bits / 8)]."""
        if self.packed:
            return self
        codes = pack(offset(self.codes, self.encoding), self.encoding.bits)
        return replace(self, codes=codes, packed=True)

    def integers(self) -> Tensor:
        """The codes, one per element, unpacked: the tensor's shape, dtype code_dtype(encoding)."""
        if not self.packed:
            return self.codes
        return offset(unpack(self.codes, self.encoding.bits, self.shape[-1]), self.encoding, back=True)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values it stands for, computed in the grid's dtype."""
        return dequantize(self.integers(), self.grid, self.encoding).to(dtype)

    @property
    def nbytes(self) -> int:
        """Bytes as stored: packed codes, scales, zero points."""
        return self.encoding.nbytes(self.shape)


def offset(codes: Tensor, encoding: Encoding, *, back: bool = False) -> Tensor:
    """Codes -> the integers 0 .. 2^bits - 1 that packing stores (uint8, int32 above 8 bits), or back."""
    low, _ = encoding.range
    if encoding.bits > 8:
        return (codes + low).to(code_dtype(encoding)) if back else codes.to(torch.int32) - low
    if not low:
        return codes
    # one byte each: adding 2^(bits-1) modulo 256 needs no wider copy
    return (codes + low % 256).view(torch.int8) if back else codes.view(torch.uint8) - low % 256


@dataclass(frozen=True)
class Layout:
    """How x is cut into blocks: a tensor of shape `split`, reduced over `axes`, parameters reshaped to `spread`.

    A shorter last block is filled up with zeros, which are on every grid: they move no range and make no error.
    """

    shape: tuple[int, ...]
    split: tuple[int, ...]
    axes: tuple[int, ...]
    spread: tuple[int, ...]
    _missing: tuple[int, ...]  # along each axis, until the last block is full

    @classmethod
    def of(cls, shape: Sequence[int], encoding: Encoding) -> Layout:
        """[n0, n1] with blocks (1, 32) -> split [n0, n1/32, 32], axes (2,), spread [n0, n1/32, 1]."""
        blocks = encoding.blocks(shape)
        split: list[int] = []
        axes: list[int] = []
        for n, b in zip(shape, blocks, strict=True):
            split.append(math.ceil(n / b))
            if b != 1:
                axes.append(len(split))
                split.append(b)
        if not axes:
            axes.append(len(split))
            split.append(1)
        spread = tuple(1 if i in axes else n for i, n in enumerate(split))
        missing = tuple(-n % b for n, b in zip(shape, blocks, strict=True))
        return cls(tuple(shape), tuple(split), tuple(axes), spread, missing)

    def cut(self, x: Tensor) -> Tensor:
        """x as blocks: of shape `split`."""
        if any(self._missing):
            x = torch.nn.functional.pad(x, [end for n in reversed(self._missing) for end in (0, n)])
        return x.reshape(self.split)

    def join(self, blocked: Tensor) -> Tensor:
        """The inverse of cut()."""
        whole = blocked.reshape([n + m for n, m in zip(self.shape, self._missing, strict=True)])
        return whole[tuple(map(slice, self.shape))].contiguous() if any(self._missing) else whole


def grid_from_range(low: Tensor, high: Tensor, encoding: Encoding) -> Grid:
    """The grid whose range covers [low, high] per block (both [g0, g1, ..]), zero always on the grid.

    Symmetric: scale = max(|low|, |high|) / ((qmax - qmin) / 2), so the largest positive value may clip by
    half a step. Asymmetric: scale = (high - low) / (qmax - qmin), zero point rounded and clamped to the
    codes; it is chosen with the scale as computed, before it is rounded to the dtype it is stored in (as
    torchao's choose_qparams_affine does).
    """
    qmin, qmax = encoding.range
    low, high = low.clamp(max=0), high.clamp(min=0)
    if encoding.symmetric:
        scale = (torch.maximum(-low, high) / ((qmax - qmin) / 2)).clamp(min=EPS)
        return Grid(_stored(scale, encoding), torch.full_like(scale, (qmax + qmin + 1) // 2))
    scale = ((high - low) / (qmax - qmin)).clamp(min=EPS)
    zero = (qmin - _Round.apply(low / scale)).clamp(qmin, qmax)  # type: ignore[no-untyped-call]
    return Grid(_stored(scale, encoding), zero)


def _stored(scale: Tensor, encoding: Encoding) -> Tensor:
    """Round the scale to the dtype it is stored in, back in the dtype it is computed in."""
    return scale.to(SCALE_DTYPES[encoding.scale]).to(scale.dtype)


def nearest_grid(scale: Tensor, zero_point: Tensor, encoding: Encoding) -> Grid:
    """The grid that can be stored nearest to these numbers, differentiable in them: straight through the roundings,
    zero where something is cut off. A symmetric encoding's zero points are not looked at."""
    qmin, qmax = encoding.range
    if encoding.symmetric:
        zero = torch.full_like(scale, (qmax + qmin + 1) // 2)
    else:
        zero = _Round.apply(zero_point).clamp(qmin, qmax)  # type: ignore[no-untyped-call]
    return Grid(_stored(scale.clamp(min=EPS), encoding), zero)


def minmax_grid(x: Tensor, encoding: Encoding) -> Grid:
    """The grid that covers each block's smallest and largest element, computed in at least float32."""
    layout = Layout.of(x.shape, encoding)
    blocked = layout.cut(wide(x))
    return grid_from_range(blocked.amin(layout.axes), blocked.amax(layout.axes), encoding)


def dynamic_grid(x: Tensor, encoding: Encoding) -> Grid:
    """The grid of an activation under a dynamic encoding, as the runtime computes it: by XNNPACK's or by FBGEMM's rule.

    Evaluation and the runtimes share one reference, so each rule is held against the kernels themselves. The two are
    the same function but for roundings, and for a floor under FBGEMM's scales. torchao's affine primitive and PyTorch's
    choose_qparams_per_token_asymmetric, which stand for them in exported graphs, differ from XNNPACK's rule in the
    scale's last bit and in some zero points. Symmetric: the min-max grid.
    """
    if encoding.symmetric:
        return minmax_grid(x, encoding)
    layout = Layout.of(x.shape, encoding)
    blocked = layout.cut(wide(x))
    low, high = blocked.amin(layout.axes).clamp(max=0), blocked.amax(layout.axes).clamp(min=0)
    return (_xnnpack_grid if encoding.rule == "xnnpack" else _fbgemm_grid)(low, high, encoding)


def _xnnpack_grid(low: Tensor, high: Tensor, encoding: Encoding) -> Grid:
    """inverse = (qmax - qmin) / (high - low), scale = 1 / inverse, and of the two zero points that put low on qmin or
    high on qmax the one whose rounding error is smaller.

    This is xnn_f32_qd8_asymmetric_quantization_params (src/xnnpack/quantization.h), operation for operation.
    """
    qmin, qmax = encoding.range
    span = high - low
    # a tensor over a tensor: torch takes `number / tensor` as a reciprocal and a product, which rounds twice
    inverse = torch.where(span > 0, torch.full_like(span, qmax - qmin) / span, 1.0)
    inverse = inverse.clamp(max=2.0**126)  # a span near the smallest normal number would make it infinite
    from_low, from_high = low * inverse, high * inverse
    zero = torch.where((qmin + from_low) + (qmax + from_high) > 0, qmin - from_low, qmax - from_high)
    return Grid(_stored(1.0 / inverse, encoding), zero.clamp(qmin, qmax).round())


def _fbgemm_grid(low: Tensor, high: Tensor, encoding: Encoding) -> Grid:
    """scale = (high - low) / (qmax - qmin) in float64 and no smaller than FLOOR, the zero point from it before it is
    stored. A block of zeros has a scale of 0.1.

    This is calculate_scale_and_zero_point of ExecuTorch's kernels/quantized/cpu/op_choose_qparams.cpp, operation for
    operation, which is FBGEMM's ChooseQuantizationParams.
    """
    qmin, qmax = encoding.range
    floor = torch.tensor(FLOOR).to(low)  # a float32 number there
    scale = (high.double() - low.double()) / (qmax - qmin)
    scale = torch.where(torch.isinf(1.0 / scale.float()), 0.1, scale)
    small = scale < floor.double()
    grow = torch.where(small, floor / scale.to(low), 1.0)
    low, high = low * grow, high * grow
    scale = torch.where(small, floor.double(), scale)
    from_low, from_high = low.double() / scale, high.double() / scale
    nearer = abs(qmin) - from_low.abs() < abs(qmax) - from_high.abs()
    zero = torch.where(nearer, qmin - from_low, qmax - from_high).clamp(qmin, qmax)
    return Grid(_stored(scale.to(low), encoding), zero.to(low).round())


def mse_grid(x: Tensor, encoding: Encoding, *, shrink: float = 0.8, steps: int = STEPS) -> Grid:
    """The grid of least squared error per block, among the min-max range shrunk to 1, 1 - 1/steps, .. 1 -
    shrink of it.

    The search of GPTQ's reference quantiser (Frantar et al. 2022, arXiv:2210.17323): grid 100, maxshrink 0.8.
    """
    layout = Layout.of(x.shape, encoding)
    blocked = layout.cut(wide(x))
    low, high = blocked.amin(layout.axes), blocked.amax(layout.axes)
    best = grid_from_range(low, high, encoding)
    scale, zero = best.scale.clone(), best.zero_point.clone()
    error = _squared_error(blocked, best, layout, encoding)
    for i in range(1, round(shrink * steps)):
        candidate = grid_from_range(low * (1 - i / steps), high * (1 - i / steps), encoding)
        e = _squared_error(blocked, candidate, layout, encoding)
        better = e < error
        error = torch.where(better, e, error)
        scale = torch.where(better, candidate.scale, scale)
        zero = torch.where(better, candidate.zero_point, zero)
    return Grid(scale, zero)


def _squared_error(blocked: Tensor, grid: Grid, layout: Layout, encoding: Encoding) -> Tensor:
    """Per block: sum of (x - fake_quantize(x))^2, in one buffer."""
    scale, zero = grid.scale.reshape(layout.spread), grid.zero_point.reshape(layout.spread)
    values = (blocked * (1.0 / scale)).round_()
    if encoding.symmetric and encoding.signed:
        values.clamp_(*encoding.range)
    else:
        values.add_(zero).clamp_(*encoding.range).sub_(zero)
    return values.mul_(scale).sub_(blocked).square_().sum(layout.axes)


def wide(x: Tensor) -> Tensor:
    """x in a dtype that the quantiser computes in: float32, or float64 as it is."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


class _Round(torch.autograd.Function):
    """Round to nearest even with a straight-through gradient (Bengio et al. 2013, arXiv:1308.3432)."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad


def _codes(blocked: Tensor, scale: Tensor, zero: Tensor, encoding: Encoding) -> Tensor:
    """Blocked x -> blocked codes, still floating point and differentiable."""
    rounded: Tensor = _Round.apply(blocked * (1.0 / scale))  # type: ignore[no-untyped-call]
    return torch.clamp(rounded + zero, *encoding.range)


def quantize(x: Tensor, grid: Grid, encoding: Encoding) -> Tensor:
    """x -> integer codes of the same shape, dtype code_dtype(encoding)."""
    layout = Layout.of(x.shape, encoding)
    scale, zero = grid.scale.reshape(layout.spread), grid.zero_point.reshape(layout.spread)
    codes = _codes(layout.cut(wide(x)), scale, zero, encoding)
    return layout.join(codes).to(code_dtype(encoding))


def dequantize(codes: Tensor, grid: Grid, encoding: Encoding) -> Tensor:
    """Integer codes -> values, in the grid's dtype: (q - zero_point) * scale."""
    layout = Layout.of(codes.shape, encoding)
    scale, zero = grid.scale.reshape(layout.spread), grid.zero_point.reshape(layout.spread)
    values = layout.cut(codes).to(scale.dtype)
    if not (encoding.symmetric and encoding.signed):  # else the zero point is 0
        values = values - zero
    return layout.join(values * scale)


def fake_quantize(x: Tensor, grid: Grid, encoding: Encoding) -> Tensor:
    """dequantize(quantize(x)) bit for bit in x's dtype, in one differentiable step.

    The gradient is straight-through in x (zero where x is clipped) and exact in the grid, rounding aside.
    """
    layout = Layout.of(x.shape, encoding)
    scale, zero = grid.scale.reshape(layout.spread), grid.zero_point.reshape(layout.spread)
    codes = _codes(layout.cut(wide(x)), scale, zero, encoding)
    return layout.join((codes - zero) * scale).to(x.dtype)


def fake_quantize_dynamic(x: Tensor, encoding: Encoding) -> Tensor:
    """Fake-quantise an activation under a dynamic encoding: the grid is computed from x itself."""
    return fake_quantize(x, dynamic_grid(x.detach(), encoding), encoding)


def encode(
    x: Tensor,
    encoding: Encoding,
    *,
    grid: Grid | None = None,
    method: RangeMethod = "minmax",
    steps: int = STEPS,
    name: str = "",
) -> QTensor:
    """x stored under the encoding, on the given grid or on the one that `method` finds.

    Rows that do not share blocks are done a chunk at a time, so the working memory does not grow with x. On the
    meta device only shapes are worked out.
    steps: of the search by mse. name: the tensor's name, for messages. Raises DrawplateError if x has an infinite
    element or one that is not a number, or if a scale is too large for the dtype it is stored in.
    """
    find = partial(mse_grid, steps=steps) if method == "mse" and not x.is_meta else minmax_grid
    codes = torch.empty(x.shape, dtype=code_dtype(encoding), device=x.device)
    grids: list[Grid] = []
    with torch.no_grad():
        for rows in [slice(None)] if x.is_meta else row_chunks(x.shape, encoding):
            part = Grid(grid.scale[rows], grid.zero_point[rows]) if grid else find(x[rows], encoding)
            codes[rows] = quantize(x[rows], part, encoding)
            grids.append(part)
    whole = grid or Grid(torch.cat([g.scale for g in grids]), torch.cat([g.zero_point for g in grids]))
    if not x.is_meta and not bool(torch.isfinite(whole.scale).all()):
        finite = bool(torch.isfinite(x).all())
        raise DrawplateError(
            f"{name or 'a tensor'} cannot be stored as '{encoding}'",
            why=f"a scale is too large for {encoding.scale}" if finite else "it has elements that are inf or nan",
            fix="store the scale as bf16 or f32" if finite else "check the checkpoint: it may be damaged",
        )
    return QTensor(codes, whole, encoding, tuple(x.shape))


def as_read(weight: Tensor | QTensor) -> Tensor:
    """A weight as operators read it."""
    return weight.dequantize() if isinstance(weight, QTensor) else weight


def row_chunks(shape: Sequence[int], encoding: Encoding) -> Iterator[slice]:
    """Slices of axis 0 of about CHUNK elements each where rows share no block, else one slice over it."""
    rows = shape[0]
    step = rows
    if len(shape) > 1 and encoding.blocks(shape)[0] == 1:
        per_row = 1
        for n in shape[1:]:
            per_row *= n
        step = max(1, CHUNK // max(1, per_row))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
