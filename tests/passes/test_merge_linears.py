"""merge-linears: siblings as one, to the bit; what stays alone is said."""

import pytest
import torch
from passkit import CAUSAL, MLP, TIED

from drawplate.passbase import Env
from drawplate.passes.merge_linears import MergeLinears, merged_name
from drawplate.passes.pack_weights import PackWeights
from drawplate.passes.quantize_activations import QuantizeActivations
from drawplate.passes.quantize_weights import QuantizeWeights
from drawplate.runner import run_passes
from drawplate.testing import check_pass
from drawplate.text import parse_program

LINEAR = torch.ops.aten.linear.default


def test_query_key_and_value_are_one():
    program = check_pass(MergeLinears(), CAUSAL).program
    assert list(program.weights) == ["embed", "head", "q_k_v"]
    assert program.weights["q_k_v"].shape == (64, 32)


@pytest.mark.parametrize("block", [(1, 32), (1, -1)])
@pytest.mark.parametrize("packed", [False, True])
def test_stored_rows_keep_their_integers_and_scales(block, packed):
    passes = [QuantizeWeights(block=block, scale="bf16"), QuantizeActivations()] + [PackWeights()] * packed
    before = run_passes(parse_program(MLP), passes, Env()).program
    after = check_pass(MergeLinears(), before).program
    merged = after.weights["gate_up"]
    parts = [before.weights[n] for n in ("gate", "up")]
    assert torch.equal(merged.integers(), torch.cat([p.integers() for p in parts]))
    assert torch.equal(merged.grid.scale, torch.cat([p.grid.scale for p in parts]))
    assert merged.nbytes == sum(p.nbytes for p in parts)
    assert merged.packed == packed


def test_per_tensor_scales_cannot_be_merged_and_that_is_said():
    program = run_passes(parse_program(MLP), [QuantizeWeights(block=(-1, -1))], Env()).program
    outcome = check_pass(MergeLinears(), program)
    assert len(list(outcome.program.nodes(LINEAR))) == 4
    assert [str(r) for r in outcome.refusals] == [
        "gate, up (aten.linear): they read one value and stay apart: rows share a scale"
    ]


def test_a_bias_is_merged_with_its_linear():
    text = MLP.replace(
        "weight @down", "weight @gb : f32[96] = seed(7)\n  weight @ub : f32[96] = seed(8)\n  weight @down"
    )
    text = text.replace("@gate)", "@gate, @gb)").replace("@up)", "@up, @ub)")
    program = check_pass(MergeLinears(), text).program
    assert {"gate_up", "gb_ub"} <= set(program.weights)


def test_one_bias_of_two_stays_alone_and_that_is_said():
    text = MLP.replace("weight @down", "weight @gb : f32[96] = seed(7)\n  weight @down").replace(
        "@gate)", "@gate, @gb)"
    )
    outcome = check_pass(MergeLinears(), text)
    assert len(list(outcome.program.nodes(LINEAR))) == 4
    assert [str(r) for r in outcome.refusals] == [
        ("gate, up (aten.linear): they read one value and stay apart: stored differently, or only some with a bias")
    ]


def test_a_shared_weight_stays_whole():
    text = TIED.replace("%y = aten.silu(%u)", "%z = aten.linear(%x, @embed)\n  %y = aten.silu(%u)").replace(
        "return %logits", "%w = aten.add.Tensor(%logits, %z)\n  return %w"
    )
    outcome = check_pass(MergeLinears(), text)
    assert set(outcome.program.weights) == {"embed", "up"}
    assert outcome.refusals[0].why == "they read one value and stay apart: embed is read elsewhere too"


def test_a_third_linear_that_stays_alone_names_those_that_were_merged():
    text = MLP.replace("%m = aten.mul", "%z = aten.linear(%x, @head)  // early\n  %m = aten.mul")
    text = text.replace("return %logits", "%w = aten.add.Tensor(%logits, %z)\n  return %w")
    outcome = check_pass(MergeLinears(), text)
    assert "gate_up" in outcome.program.weights
    assert [str(r) for r in outcome.refusals] == [
        "early (aten.linear): not merged with gate, up, which read the same value: head is read elsewhere too"
    ]


def test_nothing_to_merge_is_nothing_done():
    assert str(check_pass(MergeLinears(), TIED).program) == str(parse_program(TIED))


@pytest.mark.parametrize(
    ("names", "merged"),
    [
        (["a.q.weight", "a.k.weight", "a.v.weight"], "a.q_k_v.weight"),
        (["m.gate_proj.w.x", "m.up_proj.w.x"], "m.gate_proj_up_proj.w.x"),
        (["q", "k"], "q_k"),
        (["a.b.w", "a.c.d.w"], "a.b_c_d.w"),
        (["x.w", "x.y.w"], "x._y.w"),
    ],
)
def test_names_say_what_was_merged(names, merged):
    assert merged_name(names) == merged
