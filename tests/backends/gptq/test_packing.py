"""GPTQ's four tensors: there and back, and as GPTQModel itself reads what it wrote (tests/fixtures/gptq)."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from drawplate.backends.gptq.packing import Parts, dequantized, from_parts, shapes, stored_zeros, to_parts
from drawplate.encoding import Encoding, Grid, QTensor, code_dtype, encode, offset

FIXTURE = Path(__file__).parents[2] / "fixtures" / "gptq" / "linears.safetensors"
LINEARS = load_file(FIXTURE)
VARIANTS = sorted({name.partition("/")[0] for name in LINEARS})


def drawn(seed: int, bits: int, group: int, *, symmetric: bool, signed: bool, least: int = 0) -> QTensor:
    """Any codes, positive scales and zero points of at least `least`, [64, 128]."""
    draw = torch.Generator().manual_seed(seed)
    encoding = Encoding(bits, (1, group), symmetric, signed, scale="f16")
    low, high = encoding.range
    shape = encoding.scale_shape((64, 128))
    codes = torch.randint(low, high + 1, (64, 128), generator=draw).to(code_dtype(encoding))
    scale = (torch.rand(shape, generator=draw) + 0.01).half().float()
    middle = torch.full(shape, (low + high + 1) // 2, dtype=torch.float32)
    zero = middle if symmetric else torch.randint(low + least, high + 1, shape, generator=draw).float()
    return QTensor(codes, Grid(scale, zero), encoding, (64, 128))


@given(
    seed=st.integers(0, 1000),
    bits=st.sampled_from((2, 3, 4, 8)),
    group=st.sampled_from((16, 32, 64, 128, -1)),
    symmetric=st.booleans(),
    signed=st.booleans(),
    version=st.sampled_from((1, 2)),
)
@settings(max_examples=60, deadline=None)
def test_there_and_back(seed, bits, group, symmetric, signed, version):
    weight = drawn(seed, bits, group, symmetric=symmetric, signed=signed, least=2 - version)
    parts = to_parts(weight, version)
    assert {k: tuple(v.shape) for k, v in vars(parts).items()} == shapes((64, 128), bits, group)
    back = from_parts(parts, bits, group, version, symmetric=symmetric)
    assert torch.equal(offset(back.integers(), back.encoding), offset(weight.integers(), weight.encoding))
    assert torch.equal(back.grid.scale, weight.grid.scale)
    low = weight.encoding.range[0] - back.encoding.range[0]
    assert torch.equal(back.grid.zero_point + low, weight.grid.zero_point)
    assert torch.equal(back.dequantize(), weight.dequantize())
    assert torch.equal(dequantized(parts, bits, version), weight.dequantize())
    assert back.encoding == Encoding(bits, (1, group), symmetric, scale="f16")


@pytest.mark.parametrize(("k", "group"), [(192, 128), (576, 128), (96, 64), (160, 1024)])
@pytest.mark.parametrize("version", [1, 2])
def test_a_shorter_last_group(k, group, version):
    """As GPTQModel writes a width that the group does not divide: full groups, and what is left."""
    encoding = Encoding(4, (1, group), symmetric=False, scale="f16", ragged=True)
    weight = encode(torch.randn(32, k, generator=torch.Generator().manual_seed(k)), encoding)
    parts = to_parts(weight, version)
    assert parts.g_idx.tolist() == [i // group for i in range(k)]
    assert {key: tuple(v.shape) for key, v in vars(parts).items()} == shapes((32, k), 4, group)
    back = from_parts(parts, 4, group if group < k else -1, version, symmetric=False)
    assert torch.equal(back.integers(), weight.integers())
    assert torch.equal(back.dequantize(), weight.dequantize())
    assert torch.equal(dequantized(parts, 4, version), weight.dequantize())


def test_packed_codes_are_the_same_file():
    weight = drawn(0, 3, 32, symmetric=False, signed=True)
    for a, b in zip(vars(to_parts(weight, 2)).values(), vars(to_parts(weight.pack(), 2)).values(), strict=True):
        assert torch.equal(a, b)


def test_three_bits_go_on_in_the_next_word():
    """Word 0 ends with the two low bits of code 10, word 1 with the low bit of code 21."""
    codes = torch.arange(32) % 8
    weight = QTensor(
        codes.to(torch.uint8).repeat(32, 1), Grid(torch.ones(32, 1), torch.full((32, 1), 5.0)),
        Encoding(3, (1, -1), symmetric=False, signed=False, scale="f16"), (32, 32),
    )  # fmt: skip
    words = [w % 2**32 for w in to_parts(weight, 2).qweight[:, 0].tolist()]
    assert words[0] == sum(int(codes[j]) << (3 * j) for j in range(10)) + ((int(codes[10]) & 3) << 30)
    middle = sum(int(codes[11 + j]) << (3 * j + 1) for j in range(10))
    assert words[1] == (int(codes[10]) >> 2) + middle + ((int(codes[21]) & 1) << 31)
    assert words[2] == (int(codes[21]) >> 1) + sum(int(codes[22 + j]) << (3 * j + 2) for j in range(10))


@pytest.mark.parametrize("variant", VARIANTS)
def test_gptqmodel_reads_the_same_numbers(variant):
    """Its own dequantisation was computed in bfloat16, scales included: with these ours is the same to the bit."""
    qweight, qzeros, scales, g_idx = (LINEARS[f"{variant}/{k}"] for k in ("qweight", "qzeros", "scales", "g_idx"))
    bits, version = int(variant[1]), 2 if variant.endswith("_v2") else 1
    narrow = dequantized(Parts(qweight, qzeros, scales.bfloat16(), g_idx), bits, version)
    assert torch.equal(narrow.bfloat16().half(), LINEARS[f"{variant}/dequantised"])


@pytest.mark.parametrize("variant", [v for v in VARIANTS if "actorder" not in v])
def test_gptqmodels_tensors_come_out_again(variant):
    parts = Parts(*(LINEARS[f"{variant}/{k}"] for k in ("qweight", "qzeros", "scales", "g_idx")))
    bits, version, group = int(variant[1]), 2 if variant.endswith("_v2") else 1, int(variant[3:].split("_")[0])
    again = to_parts(from_parts(parts, bits, group, version, symmetric="asym" not in variant), version)
    for key, value in vars(parts).items():
        assert torch.equal(getattr(again, key), value), key


def test_zero_points_that_version_1_does_not_have():
    weight = encode(torch.rand(32, 32) + 1, Encoding(4, (1, -1), symmetric=False, scale="f16"))
    assert bool((stored_zeros(weight, 1) == -1).all())
    assert bool((stored_zeros(weight, 2) == 0).all())
