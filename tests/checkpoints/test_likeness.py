"""Every difference between a program and the graph that a loader builds is found, and a renaming is none."""

import pytest
import torch
from passkit import CAUSAL, MLP, TIED

from drawplate.checkpoints.likeness import constants_differ, likeness
from drawplate.passbase import Env
from drawplate.passes.add_kv_cache import AddKvCache
from drawplate.passes.last_position import LastPosition
from drawplate.passes.merge_linears import MergeLinears
from drawplate.passes.quantize_activations import QuantizeActivations
from drawplate.passes.quantize_weights import QuantizeWeights
from drawplate.passes.untie_head import UntieHead
from drawplate.program import Program
from drawplate.text import parse_program

NORMED = """// drawplate text 1
program normed(%input_ids: i64[b, s]) where 1 <= b <= 4, 1 <= s <= 16 {{
  weight @embed : f32[12, 64] = seed(1)
  {weight}
  weight @up : f32[64, 64] = seed(2)
  %x = aten.embedding(@embed, %input_ids)  // embed
  %n = aten.rms_norm(%x, [64], {read}, 0.001)  // norm
  %u = aten.linear(%n, @up)  // up
  return %u
}}"""


def reasons(program: Program, reference: Program) -> list[str]:
    return [str(r) for r in likeness(program, reference).refusals]


def test_names_do_not_matter():
    ours, theirs = parse_program(MLP.replace("@up", "@elevate")), parse_program(MLP)
    found = likeness(ours, theirs)
    assert not found.refusals
    assert found.names == {**{n: n for n in theirs.weights if n != "up"}, "elevate": "up"}


def test_stored_weights_are_the_same_graph():
    program = parse_program(MLP)
    assert not reasons(QuantizeWeights().run(program, Env()), program)


def test_a_norm_without_a_weight_is_one_of_ones():
    ours = parse_program(NORMED.format(weight="", read="None"))
    theirs = parse_program(NORMED.format(weight="weight @norm : f32[64] = seed(3)", read="@norm"))
    found = likeness(ours, theirs)
    assert not found.refusals
    assert found.filled == {"norm": 1.0}
    (one,) = reasons(theirs, ours)
    assert one.startswith("norm (aten.rms_norm): its arguments are not the architecture's")


@pytest.mark.parametrize(
    ("text", "pass_", "expected"),
    [
        (MLP, QuantizeActivations(), "drawplate.encode): the architecture has no such operation there; leave out what"),
        (MLP, MergeLinears(), "its shape is [192, 64], the architecture's 'up' has [96, 64]"),
        (CAUSAL, AddKvCache(context=16), "leave out add-kv-cache"),
        (MLP, LastPosition(), "drawplate.last_position"),
    ],
)
def test_passes_that_change_the_graph_are_told(text, pass_, expected):
    program = parse_program(text)
    if isinstance(pass_, QuantizeActivations):
        program = QuantizeWeights(where="all").run(program, Env())
    told = "\n".join(reasons(pass_.run(program, Env()), parse_program(text)))
    assert expected in told, told


def test_bands_are_told():
    """y = W_1 x_1 + W_2 x_2 in place of W x."""
    bands = (
        MLP.replace("weight @down : f32[64, 96] = seed(4)",
            "weight @a : f32[64, 48] = seed(4)\n  weight @b : f32[64, 48] = seed(6)")
        .replace("  %d = aten.linear(%m, @down)  // down\n", "  %m1 = aten.slice.Tensor(%m, 2, 0, 48)\n"
            "  %m2 = aten.slice.Tensor(%m, 2, 48, 96)\n  %d1 = aten.linear(%m1, @a)  // down\n"
            "  %d2 = aten.linear(%m2, @b)  // down\n  %d = aten.add.Tensor(%d1, %d2)\n")
    )  # fmt: skip
    told = "\n".join(reasons(parse_program(bands), parse_program(MLP)))
    assert "(aten.add.Tensor): the architecture has no such operation there" in told
    assert "a: its shape is [64, 48]" in told.replace(" (weight)", "")


def test_a_head_of_its_own_where_the_architecture_shares_the_table_and_the_reverse():
    tied = parse_program(TIED)
    split = UntieHead().run(tied, Env())
    assert "the architecture has one weight 'embed' for it and for" in "\n".join(reasons(split, tied))
    assert "it is one weight, the architecture has" in "\n".join(reasons(tied, split))


def test_other_numbers_are_told():
    theirs = NORMED.format(weight="weight @norm : f32[64] = seed(3)", read="@norm")
    (epsilon,) = reasons(parse_program(theirs.replace("0.001", "0.002")), parse_program(theirs))
    assert "0.002" in epsilon
    assert "0.001" in epsilon


def test_what_the_loader_computes_must_be_what_it_computes():
    program = parse_program(MLP)
    found = likeness(program, program)
    constants = {"up": program.weights["up"].clone()}
    assert not constants_differ(program, found, constants)
    constants["up"][0, 0] += 1
    (wrong,) = constants_differ(program, found, constants)
    assert str(wrong).startswith("up: the loader computes it from config.json, and to other numbers")
    assert isinstance(program.weights["up"], torch.Tensor)
