"""What the text says, case by case; test_random.py holds the general laws against random programs."""

import math
import os
import subprocess
import sys

import pytest
import torch

from drawplate.encoding import QTensor
from drawplate.errors import TextError
from drawplate.text import differences, parse_program, print_program, same_structure

MLP = """\
// drawplate text 1
program mlp(%x: f32[b, 64]) facts{norms.folded} where 1 <= b <= 64 {
  weight @up.weight : i4[128, 64] block 1x32 sym scale bf16
  weight @down.weight : f32[64, 128]
  %0 : f32[b, 64]            = aten.rms_norm(%x, [64])
  %1 : f32[b, 128]           = aten.linear(%0, @up.weight)  // up
  %2 : f32[b, 128]           = aten.silu(%1)
  %3 : f32[b, 64]            = aten.linear(%2, @down.weight)  // down
  %4 : f32[b, 64]            = aten.add.Tensor(%x, %3)
  return %4
}"""

EVERYTHING = """\
// drawplate text 1
program "model-1.5b"(%ids: i64[b, s], %0: f32[3, 4], %flag: bool[]) facts{"a fact", plain} \
where 1 <= b <= 9, 2 <= s <= 8 {
  weight @0.table : u8[16, 4] block 1x-1 asym scale f16
  weight @"odd name" : i3[8, 4] block 8x2 asym scale f32 packed
  state @cache.0.key : f32[1, 512, 3, 4]
  %1 : f32[b, s, 4]          = aten.embedding(@0.table, %ids)  // embed
  %2 : int                   = aten.sym_size.int(%ids, 1)
  %3 : int                   = sym.floordiv(%2, 2)
  %4 : f32[b, floordiv(s, 2), 4] = aten.slice.Tensor(%1, 1, 0, %3)
  %5 : int                   = sym.sub(%2, 1)
  %6 : f32[b, s - 1, 4]      = aten.narrow(%1, 1, 1, %5)
  %7 : i64[u0, 3]            = aten.nonzero(%1)
  %8 : (f32[b, s], i64[b, s]) = aten.max.dim(%1, -1)
  %9 : f32[b, s]             = getitem(%8, 0)
  %10 : [f32[b, s, 2], f32[b, s, 2]] = aten.split.Tensor(%1, 2, -1)
  %11 : f32[b, s, 4]         = aten.clamp(%1, -inf, 1e-05)
  %12 : f32[s]               = aten.arange(%2, dtype=f32, layout=strided, device=cpu, pin_memory=False)
  %13 : f32[b, s, 4]         = aten.clone(%1, memory_format=contiguous_format)
  %14 : f32[b, s, 4]         = drawplate.encode(%1, "i8 block -1 asym scale f32 dynamic")
  %15 : f32[b, s, 8]         = aten.linear(%1, @"odd name")
  %16 : f32[2*b, s, 8]       = aten.cat([%15, %15])
  %17 : f32[1, 512, 3, 4]    = aten.copy_(@cache.0.key, @cache.0.key)
  %18 : f32[b, s, 4]         = aten.mul.Tensor(%1, nan)
  %19 : f32[3, 4]            = aten.where.ScalarOther(%flag, %0, -0.0)
  return {"logits": %15, "rest": (%4, [%6, %7], None), "one": (%9,), "deep": {"clamped": %11, "n": 3}}
}"""


def program(*lines: str, header: str = "%x: f32[b, 4]") -> str:
    body = "".join(f"  {line}\n" for line in lines)
    return f"// drawplate text 1\nprogram m({header}) where 1 <= b <= 8 {{\n{body}}}"


@pytest.mark.parametrize("text", [MLP, EVERYTHING], ids=["mlp", "everything"])
def test_printing_gives_back_the_text(text):
    parsed = parse_program(text)
    assert str(parsed) == text
    assert same_structure(parsed, parse_program(str(parsed)))


def test_the_same_in_every_process():
    code = "import sys; from drawplate.text import parse_program as p; print(p(sys.argv[1]))"
    for seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", code, EVERYTHING],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == EVERYTHING + "\n"


def test_types_may_be_left_out_and_layout_is_free():
    text = program("%h=aten.silu( %x ,)// here", "// a line of its own", "return %h")
    assert "  %0 : f32[b, 4]             = aten.silu(%x)  // here\n" in str(parse_program(text))


def test_equal_spellings_of_a_length_are_one():
    for spelling in ("3*b", "b * 3", "b + b + b", "3*(b + 1) - 3", "floordiv(6*b, 2)"):
        text = program(f"%0 : f32[{spelling}, 4] = aten.cat([%x, %x, %x])", "return %0")
        assert "f32[3*b, 4]" in str(parse_program(text))


def test_every_reader_of_a_weight_reads_one_weight():
    tied = parse_program(
        program("weight @e : f32[9, 4]", "%0 = aten.linear(%x, @e)", "%1 = aten.linear(%x, @e)", "return (%0, %1)")
    )
    assert len(tied.readers("e")) == 2
    assert list(tied.weights) == ["e"]


def test_weights_are_printed_in_the_order_they_are_read():
    p = parse_program(program("weight @a : f32[4]", "weight @b : f32[4]", "%0 = aten.add.Tensor(@b, @a)", "return %0"))
    assert str(p).index("@b :") < str(p).index("@a :")


def test_a_program_without_types_prints():
    p = parse_program(MLP)
    for node in p.graph.nodes:
        del node.meta["val"]
    assert "  %1                         = aten.linear(%0, @up.weight)  // up\n" in str(p)


def test_contents_from_a_seed_are_the_same_each_time():
    lines = ["weight @w : f32[256, 64] = seed(3)", "%0 = aten.linear(%x, @w)", "return %0"]
    a, b = (parse_program(program(*lines, header="%x: f32[b, 64]")).weights["w"] for _ in range(2))
    assert torch.equal(a, b)
    assert math.isclose(float(a.std()), 1 / 8, rel_tol=0.02)


def test_a_seeded_vector_is_near_one():
    p = parse_program(program("weight @w : f32[4] = seed(0)", "%0 = aten.mul.Tensor(%x, @w)", "return %0"))
    assert float((p.weights["w"] - 1).abs().max()) < 0.5


@pytest.mark.parametrize(("type_", "low", "high"), [("i64", -8, 7), ("u8", 0, 15), ("bool", 0, 1), ("i8", -8, 7)])
def test_seeded_integers(type_, low, high):
    w = parse_program(program(f"weight @w : {type_}[64, 64] = seed(1)", "return @w")).weights["w"].to(torch.int64)
    assert (int(w.min()), int(w.max())) == (low, high)


def test_encoded_contents_are_what_the_quantiser_makes_of_the_values():
    line = "weight @w : i4[1, 4] block 1x4 sym scale f32{} = [[-7.5, 0, 1, 7]]"
    plain = parse_program(program(line.format(""), "%0 = aten.linear(%x, @w)", "return %0")).weights["w"]
    packed = parse_program(program(line.format(" packed"), "%0 = aten.linear(%x, @w)", "return %0")).weights["w"]
    assert isinstance(plain, QTensor)
    assert isinstance(packed, QTensor)
    assert plain.codes.tolist() == [[-8, 0, 1, 7]]
    assert packed.codes.tolist() == [[0x80, 0xF9]]
    assert torch.equal(packed.integers(), plain.integers())


def test_a_text_runs():
    p = parse_program(
        program("weight @w : f32[2, 4] = [[1, 0, 0, 0], [0, -1, 0, 0]]", "%0 = aten.linear(%x, @w)", "return %0")
    )
    assert p.module()(torch.tensor([[1.0, 2.0, 3.0, 4.0]])).tolist() == [[1.0, -2.0]]


def test_weights_without_contents_have_a_shape_only():
    assert all(
        t.is_meta for t in (parse_program(MLP).weights["down.weight"], parse_program(MLP).weights["up.weight"].codes)
    )
    seeded = program("weight @w : f32[4, 4] = seed(1)", "%0 = aten.linear(%x, @w)", "return %0")
    assert parse_program(seeded, seedable=False).weights["w"].is_meta


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("program mlp", "program other", "name"),
        ("b <= 64", "b <= 32", "dims"),
        ("facts{norms.folded} ", "", "facts"),
        ("bf16", "f16", "weights"),
        ("[64])", "[64], None, 0.1)", "value 0"),
        ("aten.silu", "aten.relu", "value 2"),
        ("%x, %3)", "%x, %3, alpha=2)", "value 4"),
        ("%x, %3)", "%3, %x)", "value 4"),
        ("// up", "// upper", "value 1"),
        ("return %4", "return (%4,)", "value 5"),
    ],
)
def test_a_difference_is_found(old, new, what):
    assert old in MLP
    a, b = parse_program(MLP), parse_program(MLP.replace(old, new))
    assert [d.split(":")[0] for d in differences(a, b)] == [what]


def test_types_of_constants_are_told_apart():
    def clamp(c: str) -> str:
        return program(f"%0 = aten.clamp(%x, {c})", "return %0")

    assert not same_structure(parse_program(clamp("1")), parse_program(clamp("1.0")))
    assert not same_structure(parse_program(clamp("1")), parse_program(clamp("True")))
    assert same_structure(parse_program(clamp("nan")), parse_program(clamp("nan")))


def test_only_what_the_text_can_say_is_parsed():
    p = parse_program(program("%0 = aten.silu(%x)", "return %0"))
    node = next(p.nodes())
    node.target = math.sqrt
    with pytest.raises(TextError, match=r"no operator is called 'python\.math\.sqrt'"):
        parse_program(print_program(p))
