"""Rounding to what a file holds: integers stay, scales and matrices move by a rounding, vectors not at all."""

import pytest
import torch
from passkit import MLP

from drawplate.checkpoints.narrowing import NARROWS, NarrowFloats
from drawplate.encoding import Grid, QTensor
from drawplate.errors import PassError
from drawplate.passbase import Env
from drawplate.passes.quantize_weights import QuantizeWeights
from drawplate.program import Program
from drawplate.rehearsal import rehearse
from drawplate.testing import check_pass
from drawplate.text import parse_program

VECTOR = """// drawplate text 1
program vector(%x: f32[b, 64]) where 1 <= b <= 4 {
  weight @w : f32[64, 64] = seed(1)
  weight @b : f32[64] = seed(2)
  %y = aten.linear(%x, @w, @b)
  return %y
}"""


def with_weight(program: Program, name: str, value) -> Program:
    editor = program.edit()
    editor.weights[name] = value
    return editor.finish()


def test_scales_and_matrices_move_and_integers_stay():
    before = check_pass(QuantizeWeights(), parse_program(MLP)).program
    outcome = check_pass(NarrowFloats(), before)
    for name, weight in outcome.program.weights.items():
        was = before.weights[name]
        if isinstance(weight, QTensor):
            assert weight.encoding.scale == "f16"
            assert torch.equal(weight.integers(), was.integers())
            assert torch.equal(weight.grid.scale, was.grid.scale.half().float())
        else:
            assert torch.equal(weight, was.half().float())
    assert outcome.told == ("the scales of 3 weights were rounded to f16; with scale=f16 they are chosen so",)
    (certificate,) = (c for c in outcome.certificates if c.invariant == "NARROWS")
    assert 0 < certificate.error <= 1


def test_vectors_keep_what_they_have_and_nothing_moves_twice():
    program = parse_program(VECTOR)
    once = check_pass(NarrowFloats(floats="bf16"), program).program
    assert once.weights["b"] is program.weights["b"]
    assert torch.equal(once.weights["w"], program.weights["w"].bfloat16().float())
    again = check_pass(NarrowFloats(floats="bf16"), once).program
    assert again.weights["w"] is once.weights["w"]


def test_a_rehearsal_says_the_same_encodings():
    program = QuantizeWeights().run(parse_program(MLP), Env())
    rehearsed = rehearse(program, [NarrowFloats()], Env()).program
    assert rehearsed is not None
    assert rehearsed.encodings == NarrowFloats().run(program, Env()).encodings


def test_what_is_too_large_is_told():
    program = with_weight(parse_program(VECTOR), "w", torch.full((64, 64), 1e5))
    with pytest.raises(PassError) as caught:
        NarrowFloats().run(program, Env())
    assert str(caught.value) == (
        "w cannot be stored as float16\n  why:   it reaches 1e+05\n"
        "  do:    use another floats= of the backend, such as bf16"
    )


def test_scales_that_would_vanish_are_told():
    program = QuantizeWeights().run(parse_program(MLP), Env())
    weight = program.weights["up"]
    tiny = QTensor(weight.codes, Grid(weight.grid.scale * 1e-9, weight.grid.zero_point), weight.encoding, weight.shape)
    with pytest.raises(PassError, match="scales of up are too small for f16"):
        NarrowFloats().run(with_weight(program, "up", tiny), Env())


def test_another_change_is_no_narrowing():
    before = NarrowFloats().run(parse_program(VECTOR), Env())
    moved = with_weight(before, "w", (before.weights["w"] * 1.01).half().float())
    assert not NARROWS.measure(before, moved, 0).holds
    assert not NARROWS.measure(before, with_weight(before, "b", before.weights["b"] + 1), 0).holds
