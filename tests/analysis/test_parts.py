"""Programs as parts: each block of a chain one, and one part where there is no chain."""

from __future__ import annotations

import pytest
from architectures import captured

from drawplate.analysis.blocks import blocks
from drawplate.analysis.parts import parts
from drawplate.text import parse_program

ALONE = """// drawplate text 1
program alone(%x: f32[b, 32]) where 1 <= b <= 64 {
  weight @w : f32[12, 32] = seed(1)
  %a = aten.silu(%x)
  %y = aten.linear(%a, @w)  // one
  return %y
}"""
BRANCHES = """// drawplate text 1
program branches(%x: f32[b, 32], %z: f32[b, 32]) where 1 <= b <= 64 {
  weight @v : f32[12, 32] = seed(1)
  weight @w : f32[12, 32] = seed(2)
  %a = aten.silu(%x)
  %p = aten.linear(%a, @v)
  %q = aten.linear(%z, @w)
  %y = aten.add.Tensor(%p, %q)
  return %y
}"""


@pytest.mark.parametrize("text", [ALONE, BRANCHES])
def test_without_a_chain_there_is_one_part(text: str) -> None:
    program = parse_program(text)
    assert not blocks(program)
    (part,) = parts(program)
    assert set(part.weights) == set(program.weights)
    assert {n.op for n in part.needs} == {"placeholder"}
    assert [g.name for g in part.gives] == [n.name for n in program.graph.output_node().all_input_nodes]


def test_what_comes_before_each_block_and_what_comes_after() -> None:
    program = captured("mistral")
    first, *middle, last = parts(program)
    assert [part.name for part in middle] == [block.name for block in blocks(program)]
    assert "model.embed_tokens.weight" in first.weights
    assert "lm_head.weight" in last.weights
    assert not first.name
    assert not last.name
