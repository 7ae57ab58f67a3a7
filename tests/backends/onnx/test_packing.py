"""Packing is exact: integers, scales and zero points read back as they were, and dequantise to the last bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from drawplate.backends.onnx.packing import Blocks, blocks, plain, unblocks, unplain
from drawplate.encoding import QTensor, encode
from drawplate.scheme import Encoding

SLOWLY = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # torch's first call takes a second


@st.composite
def weights(draw: st.DrawFn) -> QTensor:
    """Of any shape, encoding and contents that MatMulNBits takes, packed or not."""
    encoding = Encoding(
        draw(st.sampled_from((2, 4, 8))),
        (1, draw(st.sampled_from((16, 32, 64)))),
        symmetric=draw(st.booleans()),
        signed=draw(st.booleans()),
        scale=draw(st.sampled_from(("f32", "f16", "bf16"))),
    )
    shape = draw(st.integers(1, 9)), encoding.block[1] * draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    weight = encode(torch.randn(shape, generator=generator) + draw(st.sampled_from((0.0, 0.7))), encoding)
    return weight.pack() if draw(st.booleans()) else weight


def same(a: QTensor, b: QTensor) -> bool:
    return (
        torch.equal(a.integers(), b.integers())
        and torch.equal(a.grid.scale, b.grid.scale)
        and torch.equal(a.grid.zero_point, b.grid.zero_point)
        and torch.equal(a.dequantize(), b.dequantize())
    )


@given(weights())
@SLOWLY
def test_blocks_read_back(weight: QTensor) -> None:
    assert same(unblocks(blocks(weight), weight.encoding, (weight.shape[0], weight.shape[1])), weight)


@given(weights())
@SLOWLY
def test_blocks_mean_what_the_operator_computes(weight: QTensor) -> None:
    """MatMulNBits' own arithmetic on the file's numbers, (code - zero) * scale in float32, gives the program's bits."""
    found, bits = blocks(weight), weight.encoding.bits
    codes = _taken_apart(found.codes, bits).float()  # [n, blocks, block]
    count = codes.shape[1]
    zeros = torch.tensor(float(1 << bits - 1)) if found.zeros is None else _taken_apart(found.zeros, bits)[:, :count]
    zeros = zeros if found.zeros is None else zeros.float()[..., None]
    values = (codes - zeros) * found.scales.float()[..., None]
    assert torch.equal(values.reshape(weight.shape), weight.dequantize())


def _taken_apart(packed: Tensor, bits: int) -> Tensor:
    """uint8 [.., n] -> [.., n * 8 / bits], lowest bits first: a second time, as the operator's page says."""
    pieces = [(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return torch.stack(pieces, dim=-1).flatten(-2)


@given(weights())
@SLOWLY
def test_plain_reads_back(weight: QTensor) -> None:
    codes = weight.integers()
    assert torch.equal(unplain(plain(codes, weight.encoding), weight.encoding, weight.shape), codes)


@pytest.mark.parametrize("bits", [4, 2])
def test_plain_is_what_onnx_packs(bits: int) -> None:
    """The same bytes as the onnx package's own packing, of signed codes and an odd number of them."""
    onnx: Any = pytest.importorskip("onnx")
    numpy_helper: Any = pytest.importorskip("onnx.numpy_helper")
    codes = torch.tensor([[-2, -1, 0], [1, -1, 1], [0, 1, -2]], dtype=torch.int8)
    stored = plain(codes, Encoding(bits, (1, -1))).numpy().tobytes()
    proto = onnx.helper.make_tensor("x", getattr(onnx.TensorProto, f"INT{bits}"), (3, 3), stored, raw=True)
    assert numpy_helper.to_array(proto).astype("int8").tolist() == codes.tolist()


def test_a_symmetric_weight_has_no_zero_points() -> None:
    weight = encode(torch.ones(2, 32), Encoding(4, (1, 32)))
    found = blocks(weight)
    assert found.zeros is None
    assert found.codes.unique().tolist() == [0xFF]  # the highest code, 7, twice in a byte, each 8 up
    moved = replace(found, codes=found.codes - 1)
    assert isinstance(moved, Blocks)
    assert not same(unblocks(moved, weight.encoding, (2, 32)), weight)
