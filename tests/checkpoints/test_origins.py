"""Weights that canonical form folds, back to what the checkpoint has."""

import pytest
import torch

from drawplate.canonical import canonicalise
from drawplate.checkpoints.origins import Origin, is_transpose, made_from, origin_of, stored_in, taken_back
from drawplate.text import parse_program

PROGRAM = """// drawplate text 1
program p(%x: f32[b, 6]) where 1 <= b <= 4 {{
  weight @w : f32{shape} = seed(1)
  weight @c : f32[6] = seed(2)
  {lines}
  return %y
}}"""
NORM = "%y = aten.rms_norm(%x, [6], %v, 0.001)"
CASES = {
    "one plus": ("[6]", f"%v = aten.add.Tensor(@w, 1.0)\n  {NORM}"),
    "scaled and moved": ("[6]", f"%u = aten.mul.Tensor(@w, 0.5)\n  %v = aten.sub.Tensor(%u, 2)\n  {NORM}"),
    "divided, negative": ("[6]", f"%u = aten.neg(@w)\n  %v = aten.div.Tensor(%u, 4)\n  {NORM}"),
    "with a buffer": ("[6]", f"%v = aten.add.Tensor(@c, @w)\n  {NORM}"),
    "another shape": ("[1, 6]", f"%u = aten.reshape(@w, [6])\n  %v = aten.mul.Tensor(%u, 2)\n  {NORM}"),
    "turned": ("[6, 3]", "%v = aten.t(@w)\n  %y = aten.linear(%x, %v)"),
    "permuted": ("[6, 3]", "%v = aten.permute(@w, [1, 0])\n  %y = aten.linear(%x, %v)"),
}
LOST = {
    "squared": ("[6]", f"%v = aten.mul.Tensor(@w, @w)\n  {NORM}"),
    "a number less": ("[6]", f"%v = aten.sub.Tensor(@c, @w)\n  {NORM}"),
}


def folded(name: str) -> tuple[Origin, dict[str, torch.Tensor], torch.Tensor]:
    """How the one folded weight came about, the checkpoint's weights, and the folded one."""
    shape, lines = {**CASES, **LOST}[name]
    program = parse_program(PROGRAM.format(shape=shape, lines=lines))
    origins: dict[str, Origin] = {}
    canonical = canonicalise(program, lambda made, node: origins.update({made: origin_of(node)}))
    ((made, origin),) = origins.items()
    return origin, dict(program.weights), canonical.weights[made]


@pytest.mark.parametrize("name", CASES)
def test_there_and_back(name):
    origin, weights, value = folded(name)
    assert stored_in(origin, {"w"}) == "w"
    assert torch.equal(made_from(origin, weights.__getitem__), value)
    back = taken_back(origin, value.double(), {"w"}, weights.__getitem__)
    assert back.shape == weights["w"].shape
    assert torch.allclose(back.float(), weights["w"], atol=1e-6)


def test_transposes_are_known():
    assert {name for name in CASES if is_transpose(folded(name)[0])} == {"turned", "permuted"}


@pytest.mark.parametrize("name", LOST)
def test_what_cannot_be_gone_back_has_no_name(name):
    origin, _, _ = folded(name)
    assert stored_in(origin, {"w"}) == ""
    assert "w" in origin.names
