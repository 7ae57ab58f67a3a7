"""last-position: the last row of what it was."""

import pytest
import torch
from passkit import CAUSAL, MLP, TIED, WIDTHS

from drawplate.errors import DrawplateError
from drawplate.passbase import Env
from drawplate.passes.add_kv_cache import AddKvCache
from drawplate.passes.last_position import LastPosition
from drawplate.passes.quantize_activations import QuantizeActivations
from drawplate.passes.quantize_weights import QuantizeWeights
from drawplate.runner import run_passes
from drawplate.testing import check_pass
from drawplate.text import parse_program

LAST = torch.ops.drawplate.last_position.default


@pytest.mark.parametrize("text", [MLP, TIED])
def test_its_logits_are_the_last_row(text):
    program = check_pass(LastPosition(), text).program
    ids = torch.arange(10).reshape(2, 5)
    assert torch.allclose(program.module()(ids), parse_program(text).module()(ids)[:, -1:], atol=1e-6)


def test_it_stands_in_front_of_the_encoding_that_the_head_reads():
    passes = [QuantizeWeights("head", 8, (1, -1)), QuantizeActivations()]
    program = run_passes(parse_program(MLP), passes, Env()).program
    (last,) = check_pass(LastPosition(), program).program.nodes(LAST)
    assert [n.target for n in last.users] == [torch.ops.drawplate.encode.default]


@pytest.mark.parametrize("order", [[AddKvCache(8), LastPosition()], [LastPosition(), AddKvCache(8)]])
def test_before_or_after_the_cache(order):
    program = run_passes(parse_program(CAUSAL), order, Env()).program
    assert program.facts == {"cache.inserted", "head.last_position", "weights.float"} - {"weights.float"}


def test_it_goes_in_front_of_what_treats_each_position_by_itself():
    text = """// drawplate text 1
program turned(%i: i64[b, s]) where 1 <= b <= 4, 1 <= s <= 16 {
  weight @e : f32[12, 8] = seed(1)
  weight @g : f32[8] = seed(2)
  %t = aten.embedding(@e, %i)
  %a = aten.silu(%t)
  %n = aten.rms_norm(%a, [8])
  %h = drawplate.hadamard(%n, 8, True)
  %m = aten.mul.Tensor(%h, @g)
  %u = drawplate.hadamard(%m, 8)
  %y = aten.linear(%u, @e)
  return %y
}
"""
    (last,) = check_pass(LastPosition(), text).program.nodes(LAST)
    assert last.all_input_nodes[0].target is torch.ops.aten.silu.default


def test_twice_is_once():
    program = LastPosition().run(parse_program(MLP), Env())
    assert LastPosition().run(program, Env()) is program


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        (WIDTHS, "f32[b, 64] of 0"),
        (MLP.replace("return %logits", "return [%logits, %y]"), "f32[b, s, 12], f32[b, s, 64] of"),
    ],
)
def test_a_program_without_a_last_position_is_refused(text, kinds):
    with pytest.raises(DrawplateError) as error:
        LastPosition().run(parse_program(text), Env())
    assert error.value.what == "there is no last position to take"
    assert f"the output should be [batch, length, vocabulary] of one linear; it is {kinds}" in error.value.why
