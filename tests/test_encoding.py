"""The reference quantiser: held against torchao's primitives, and against itself."""

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchao.quantization.quant_primitives import (
    MappingType,
    choose_qparams_affine,
    dequantize_affine,
    quantize_affine,
)

from drawplate.encoding import (
    EPS,
    SCALE_DTYPES,
    Encoding,
    QTensor,
    RangeMethod,
    ScaleDtype,
    dequantize,
    encode,
    fake_quantize,
    fake_quantize_dynamic,
    minmax_grid,
    mse_grid,
    per_channel,
    per_token,
    quantize,
)
from drawplate.errors import DrawplateError

SCALES = st.sampled_from(["f32", "f16", "bf16"])


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Matrices with rows of very different size, zeros, repeated and one-sided values among them."""
    rows, groups = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    width = draw(st.sampled_from([1, 2, 8, 32]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(rows, groups * width, generator=generator)
    x = x * 10.0 ** torch.randint(-6, 3, (rows, 1), generator=generator)
    kind = draw(st.sampled_from(["plain", "positive", "shifted", "zero row", "coarse", "all zero"]))
    if kind == "positive":
        x = x.abs()
    elif kind == "shifted":
        x = x + 3
    elif kind == "zero row":
        x[0] = 0
    elif kind == "coarse":
        x = x.round()
    elif kind == "all zero":
        x = torch.zeros_like(x)
    return x


BYTES = st.integers(1, 8)


@st.composite
def cases(draw: st.DrawFn, *, bits: st.SearchStrategy[int] = BYTES) -> tuple[Tensor, Encoding]:
    """A matrix and an encoding that fits it."""
    x = draw(tensors())
    n = x.shape[1]
    widths = [g for g in (2, 8, 16, 32) if n % g == 0]
    block = draw(st.sampled_from([(-1, -1), (1, -1), (-1, 1), *((1, g) for g in widths)]))
    encoding = Encoding(draw(bits), block, draw(st.booleans()), draw(st.booleans()), draw(SCALES))
    return x, encoding


@given(cases())
def test_agrees_with_torchao_bit_for_bit(case: tuple[Tensor, Encoding]) -> None:
    x, encoding = case
    block = list(encoding.blocks(x.shape))
    assume(any(b > 1 for b in block))  # torchao takes blocks of single elements as one block of all of them
    qmin, qmax = encoding.range
    dtype = torch.int8 if encoding.signed else torch.uint8
    mapping = MappingType.SYMMETRIC if encoding.symmetric else MappingType.ASYMMETRIC
    scale, zero = choose_qparams_affine(
        x, mapping, block, dtype, qmin, qmax, EPS, SCALE_DTYPES[encoding.scale], torch.int32
    )
    assume(bool(torch.isfinite(scale).all()))
    grid = minmax_grid(x, encoding)
    assert torch.equal(grid.scale.reshape(scale.shape), scale.float())
    assert torch.equal(grid.zero_point.reshape(zero.shape), zero.float())

    # torchao computes in the dtype of the scale it is given; the scale as stored, read back as float32, is
    # what a runtime multiplies with
    theirs = quantize_affine(x, block, scale.float(), zero, dtype, qmin, qmax)
    ours = quantize(x, grid, encoding)
    assert ours.dtype == theirs.dtype
    assert torch.equal(ours, theirs)
    values = dequantize_affine(theirs, block, scale.float(), zero, dtype, qmin, qmax)
    assert torch.equal(dequantize(ours, grid, encoding), values)


@given(
    cases(bits=st.integers(1, 16)),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_fake_quantize_is_quantize_then_dequantize(case: tuple[Tensor, Encoding], dtype: torch.dtype) -> None:
    x, encoding = case[0].to(dtype), case[1]
    grid = minmax_grid(x, encoding)
    assume(bool(torch.isfinite(grid.scale).all()))
    codes = quantize(x, grid, encoding)
    assert int(codes.min()) >= encoding.range[0]
    assert int(codes.max()) <= encoding.range[1]
    values = dequantize(codes, grid, encoding)
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(fake_quantize(x, grid, encoding), values.to(dtype))


@given(cases())
def test_error_is_half_a_step_and_what_rounding_the_scale_clips(case: tuple[Tensor, Encoding]) -> None:
    x, encoding = case
    grid = minmax_grid(x, encoding)
    assume(bool(torch.isfinite(grid.scale).all()))
    steps = (fake_quantize(x, grid, encoding) - x).abs() / spread(grid.scale, x, encoding)
    qmin, qmax = encoding.range
    mantissa = {"f32": 2**-23, "f16": 2**-10, "bf16": 2**-7}[encoding.scale]
    subnormal = encoding.scale == "f16" and bool((grid.scale < 2**-14).any())
    assume(not subnormal)
    assert float(steps.max()) <= (0.5 if encoding.symmetric else 1.0) + (qmax - qmin) * mantissa + 1e-3


def spread(parameter: Tensor, x: Tensor, encoding: Encoding) -> Tensor:
    """Per-block parameter repeated to x's shape, written the slow way."""
    for axis, b in enumerate(encoding.blocks(x.shape)):
        parameter = parameter.repeat_interleave(b, axis)
    return parameter


@given(tensors(), st.integers(2, 8), st.booleans())
def test_least_squares_range_is_never_worse_than_min_max(x: Tensor, bits: int, symmetric: bool) -> None:
    encoding = Encoding(bits, (1, -1), symmetric)
    found, plain = mse_grid(x, encoding), minmax_grid(x, encoding)
    assert bool((found.scale <= plain.scale).all())
    error = (fake_quantize(x, found, encoding) - x).square().sum(1)
    reference = (fake_quantize(x, plain, encoding) - x).square().sum(1)
    assert bool((error <= reference).all())


def test_least_squares_range_cuts_off_an_outlier() -> None:
    x = torch.randn(1, 256, generator=torch.Generator().manual_seed(0))
    x[0, 0] = 6
    encoding = Encoding(3, (1, -1))
    found, plain = encode(x, encoding, method="mse"), encode(x, encoding)
    assert float(found.grid.scale) < 0.8 * float(plain.grid.scale)
    assert (found.dequantize() - x).norm() < 0.8 * (plain.dequantize() - x).norm()


@given(st.integers(1, 3), st.integers(1, 15), st.integers(1, 8), st.booleans(), st.booleans(), SCALES)
def test_a_shorter_last_group_is_stored_as_if_it_were_alone(
    groups: int, rest: int, bits: int, symmetric: bool, signed: bool, scale: ScaleDtype
) -> None:
    """And the groups in front of it as if it were not there."""
    x = torch.randn(3, 16 * groups + rest, generator=torch.Generator().manual_seed(rest))
    encoding = Encoding(bits, (1, 16), symmetric, signed, scale, ragged=True)
    for method in get_args(RangeMethod):
        whole, parts = encode(x, encoding, method=method), x.split(16 * groups, 1)
        alone = [encode(part, encoding, method=method) for part in parts]
        assert torch.equal(whole.codes, torch.cat([q.codes for q in alone], 1))
        assert torch.equal(whole.grid.scale, torch.cat([q.grid.scale for q in alone], 1))
        assert torch.equal(whole.dequantize(), torch.cat([q.dequantize() for q in alone], 1))
        assert torch.equal(whole.pack().dequantize(), fake_quantize(x, whole.grid, encoding))
        assert whole.dequantize().is_contiguous()  # safetensors takes no other
    with pytest.raises(DrawplateError, match="does not divide axis 1"):
        replace(encoding, ragged=False).scale_shape(x.shape)


@pytest.mark.parametrize("method", ["minmax", "mse"])
@pytest.mark.parametrize(
    "encoding", [Encoding(4, (1, 32), scale="bf16"), Encoding(8, (-1, -1)), per_channel(8)], ids=str
)
def test_a_large_tensor_in_chunks_is_the_same(method: str, encoding: Encoding, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(37, 64, generator=torch.Generator().manual_seed(0))
    whole = encode(x, encoding, method=method)  # type: ignore[arg-type]
    monkeypatch.setattr("drawplate.encoding.CHUNK", 200)
    parts = encode(x, encoding, method=method)  # type: ignore[arg-type]
    assert torch.equal(whole.codes, parts.codes)
    assert torch.equal(whole.grid.scale, parts.grid.scale)


def test_zero_denormal_and_tiny_blocks_have_a_normal_scale() -> None:
    for value in (0.0, -0.0, 1e-45, 1e-30):
        q = encode(torch.full((2, 32), value), Encoding(4, (1, 32), scale="bf16"))
        assert bool((q.grid.scale >= torch.finfo(torch.bfloat16).smallest_normal).all())
        assert int(q.codes.abs().max()) == 0


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_weight_that_is_not_finite_is_refused(bad: float, symmetric: bool) -> None:
    x = torch.ones(4, 32)
    x[2, 5] = bad
    with pytest.raises(DrawplateError) as error:
        encode(x, Encoding(4, (1, 32), symmetric), name="layers.0.up.weight")
    kind = "sym" if symmetric else "asym"
    assert str(error.value) == (
        f"layers.0.up.weight cannot be stored as 'i4 block 1x32 {kind} scale f32'\n"
        "  why:   it has elements that are inf or nan\n"
        "  do:    check the checkpoint: it may be damaged"
    )


def test_a_scale_that_overflows_its_dtype_is_refused() -> None:
    with pytest.raises(DrawplateError) as error:
        encode(torch.full((2, 32), 1e6), Encoding(4, (1, 32), scale="f16"), name="w")
    assert str(error.value) == (
        "w cannot be stored as 'i4 block 1x32 sym scale f16'\n"
        "  why:   a scale is too large for f16\n"
        "  do:    store the scale as bf16 or f32"
    )


def test_gradient_is_straight_through_inside_the_range_and_zero_outside() -> None:
    encoding = Encoding(4, (1, -1))
    x = torch.tensor([[0.1, -0.6, 3.0, -3.0, 0.7]], requires_grad=True)
    grid = minmax_grid(torch.tensor([[1.0, -1.0, 0.0, 0.0, 0.0]]), encoding)
    fake_quantize(x, grid, encoding).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad[0].tolist() == pytest.approx([1, 1, 0, 0, 1])


def test_gradient_of_the_scale_is_the_learned_step_size_formula() -> None:
    """d/ds s * round(x / s) is round(x / s) - x / s inside the range, the end code outside (arXiv:1902.08153)."""
    encoding = Encoding(4, (1, -1))
    x = torch.tensor([[0.33, -0.61, 3.0]])
    grid = minmax_grid(torch.ones(1, 3), encoding)
    scale = grid.scale.clone().requires_grad_()
    fake_quantize(x, type(grid)(scale, grid.zero_point), encoding).sum().backward()
    ratio = x / grid.scale
    inside = (ratio.round() - ratio)[:, :2].sum() + 7
    assert scale.grad is not None
    assert float(scale.grad) == pytest.approx(float(inside), rel=1e-5)


def test_a_float64_program_is_quantised_in_float64() -> None:
    x = torch.randn(3, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grid = minmax_grid(x, per_channel(8))
    assert grid.scale.dtype == torch.float64
    assert torch.equal(grid.scale, grid.scale.float().double())  # representable in the dtype it is stored in
    assert fake_quantize(x, grid, per_channel(8)).dtype == torch.float64
    assert fake_quantize_dynamic(x, per_token()).dtype == torch.float64


def test_a_stored_tensor_has_its_encodings_bytes() -> None:
    assert encode(torch.zeros(4, 5), Encoding(3, (1, -1))).nbytes == 4 * 2 + 4 * 4


def test_a_stored_tensor_reads_back_in_any_dtype() -> None:
    q = encode(torch.randn(4, 32, generator=torch.Generator().manual_seed(0)), Encoding(4, (1, 32)))
    assert isinstance(q, QTensor)
    assert torch.equal(q.dequantize(torch.float64), q.dequantize().double())
    assert q.dequantize(torch.bfloat16).dtype == torch.bfloat16


@given(tensors())
def test_a_dynamic_token_keeps_its_ends_on_the_grid(x: Tensor) -> None:
    """Everything is within a step (half of one but for the ends of the range), and zero is exact."""
    y = fake_quantize_dynamic(x, per_token())
    step = (x.amax(1, keepdim=True).clamp(min=0) - x.amin(1, keepdim=True).clamp(max=0)) / 255
    assert bool(((y - x).abs() <= step * 1.001).all())
    assert bool((y[x == 0] == 0).all())


@given(tensors())
@settings(max_examples=50)
def test_a_dynamic_token_is_torch_s_decomposed_op_up_to_the_last_bit(x: Tensor) -> None:
    import torch.ao.quantization.fx._decomposed

    ops = torch.ops.quantized_decomposed
    scale, zero = ops.choose_qparams_per_token_asymmetric.default(x, torch.int8)
    q = ops.quantize_per_token.default(x, scale, zero, -128, 127, torch.int8)
    theirs = ops.dequantize_per_token.default(q, scale, zero, -128, 127, torch.int8, torch.float32)
    ours = fake_quantize_dynamic(x, per_token())
    # a value, or a zero point, on a tie may fall to either side; theirs has a floor under the scale
    assert bool(((ours - theirs).abs() <= scale.float() * 1.001 + 1e-30).all())


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_dynamic_encoding_may_be_symmetric_and_of_any_width(symmetric: bool) -> None:
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    for bits in (4, 8, 16):
        y = fake_quantize_dynamic(x, Encoding(bits, (-1,), symmetric, dynamic=True))
        assert float((y - x).abs().max()) < 8 / 2**bits
