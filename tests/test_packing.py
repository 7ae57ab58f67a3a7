"""Packing: dense, exact, and quick enough for a vocabulary."""

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drawplate.encoding import Encoding, code_dtype, encode, offset
from drawplate.packing import pack, pack_words, unpack, unpack_words


@given(
    bits=st.integers(1, 16),
    shape=st.lists(st.integers(1, 5), max_size=2),
    n=st.integers(1, 70),
    seed=st.integers(0, 2**31),
)
def test_unpack_gives_back_what_was_packed(bits: int, shape: list[int], n: int, seed: int) -> None:
    codes = torch.randint(0, 2**bits, (*shape, n), generator=torch.Generator().manual_seed(seed))
    codes = codes.to(torch.uint8 if bits <= 8 else torch.int32)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (*shape, (n * bits + 7) // 8)
    back = unpack(packed, bits, n)
    assert back.dtype == codes.dtype
    assert torch.equal(back, codes)


@given(
    bits=st.integers(1, 8),
    shape=st.lists(st.integers(1, 4), max_size=2),
    n=st.integers(1, 70),
    seed=st.integers(0, 2**31),
)
def test_words_hold_the_same_bits(bits: int, shape: list[int], n: int, seed: int) -> None:
    """A last word that is not full is filled with zeros; transposed views are packed as what they show."""
    codes = torch.randint(0, 2**bits, (*shape, n), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    words = pack_words(codes, bits)
    assert words.dtype == torch.int32
    assert words.shape == (*shape, -(-n * bits // 32))
    first = codes.reshape(-1, n)[0]
    number = sum(int(c) << (i * bits) for i, c in enumerate(first))
    assert [w % 2**32 for w in words.reshape(-1, words.shape[-1])[0].tolist()] == [
        number >> (32 * i) & (2**32 - 1) for i in range(words.shape[-1])
    ]
    assert torch.equal(unpack_words(words, bits, n), codes)
    turned = codes.reshape(-1, n).t()
    assert torch.equal(unpack_words(pack_words(turned, bits), bits, turned.shape[-1]), turned)


@given(bits=st.integers(1, 16), n=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_the_layout_is_one_little_endian_number_per_row(bits: int, n: int, seed: int) -> None:
    codes = torch.randint(0, 2**bits, (n,), generator=torch.Generator().manual_seed(seed))
    number = sum(int(c) << (i * bits) for i, c in enumerate(codes))
    expected = number.to_bytes((n * bits + 7) // 8, "little")
    assert bytes(pack(codes.to(torch.int32), bits).tolist()) == expected


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("signed", [True, False])
def test_every_code_survives_the_offset(bits: int, signed: bool) -> None:
    encoding = Encoding(bits, (-1,), signed=signed)
    low, high = encoding.range
    codes = torch.arange(low, high + 1, dtype=torch.int32).to(code_dtype(encoding))
    stored = offset(codes, encoding)
    assert int(stored.min()) == 0
    assert int(stored.max()) == 2**bits - 1
    assert torch.equal(offset(stored, encoding, back=True), codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_packed_tensor_stands_for_the_same_values_and_has_the_bytes_it_says(bits: int) -> None:
    q = encode(torch.randn(6, 30, generator=torch.Generator().manual_seed(0)), Encoding(bits, (1, -1)))
    packed = q.pack()
    assert torch.equal(packed.integers(), q.codes)
    assert torch.equal(packed.dequantize(), q.dequantize())
    assert packed.codes.numel() + packed.grid.scale.numel() * 4 == packed.nbytes == q.nbytes
    assert packed.pack() is packed


def test_a_vocabulary_packs_in_well_under_seconds() -> None:
    """28M elements at 4 bits: tens of milliseconds of work; the bound leaves room for a busy machine."""
    codes = torch.randint(0, 16, (49152, 576), dtype=torch.uint8)
    start = time.process_time()
    back = unpack(pack(codes, 4), 4, 576)
    assert time.process_time() - start < 2
    assert torch.equal(back, codes)
