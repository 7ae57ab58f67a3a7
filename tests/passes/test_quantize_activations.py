"""quantize-activations: one encoding per value, in front of linears with stored weights."""

import pytest
import torch
from passkit import MLP, TIED

from drawplate.encoding import Encoding, fake_quantize_dynamic, per_channel, per_token
from drawplate.errors import DrawplateError
from drawplate.passbase import Env
from drawplate.passes.quantize_activations import QuantizeActivations
from drawplate.passes.quantize_embedding import QuantizeEmbedding
from drawplate.passes.quantize_weights import QuantizeWeights
from drawplate.runner import run_passes
from drawplate.target import Choice, Target
from drawplate.testing import check_pass
from drawplate.text import parse_program

ENCODE = torch.ops.drawplate.encode.default
LINEAR = torch.ops.aten.linear.default


def stored(text, *passes):
    return run_passes(parse_program(text), passes, Env()).program


def test_a_value_that_two_linears_read_is_encoded_once():
    program = check_pass(QuantizeActivations(), stored(MLP, QuantizeWeights())).program
    encodes = list(program.nodes(ENCODE))
    assert [n.args[1] for n in encodes] == [str(per_token(8))] * 2
    assert len(encodes[0].users) == 2


def test_only_linears_with_stored_weights_read_encoded_values():
    program = check_pass(QuantizeActivations(), stored(MLP, QuantizeWeights("head", 8, (1, -1)))).program
    for node in program.nodes(LINEAR):
        assert (node.args[0].target is ENCODE) == (node.args[1].target == "head")


def test_a_tied_head_too():
    program = check_pass(QuantizeActivations(), stored(TIED, QuantizeEmbedding(), QuantizeWeights("head", 8, (1, -1))))
    assert len(list(program.program.nodes(ENCODE))) == 1


def test_twice_is_once():
    program = stored(MLP, QuantizeWeights(), QuantizeActivations())
    assert str(check_pass(QuantizeActivations(), program).program) == str(program)


def test_it_computes_what_the_reference_makes_of_each_token():
    program = stored(MLP, QuantizeWeights("head", 8, (1, -1)))
    before, after = program.module(), check_pass(QuantizeActivations(), program).program.module()
    ids = torch.arange(8)[None]
    seen = {}
    linear = torch.nn.functional.linear
    final = next(reversed(list(program.nodes(LINEAR))))
    assert final.args[1].target == "head"
    hidden = torch.fx.Interpreter(before)
    hidden.run_node = lambda n, run=hidden.run_node: seen.setdefault(n.name, run(n))
    hidden.run(ids)
    y = seen[final.args[0].name]
    expected = linear(fake_quantize_dynamic(y, per_token()), program.weights["head"].dequantize())
    assert torch.equal(after(ids), expected)


def test_a_target_with_weight_only_linears_gets_floating_point_activations():
    weight_only, both = Encoding(4, (1, 32)), per_channel(8)
    target = Target("mixed", {"linear": (Choice(weight_only, None, 32), Choice(both, per_token(8)))})
    program = stored(MLP, QuantizeWeights(), QuantizeWeights("head", 8, (1, -1)))
    outcome = check_pass(QuantizeActivations(), program, env=Env(target=target))
    assert len(list(outcome.program.nodes(ENCODE))) == 1
    assert [str(r) for r in outcome.refusals] == [
        f"{site} (aten.linear): with a weight of 'i4 block 1x32 sym scale f32' the target computes on "
        "floating-point activations"
        for site in ("gate", "up", "down")
    ]


def test_a_target_that_takes_none_is_an_error_with_the_first_sites():
    target = Target("weights only", {"linear": (Choice(Encoding(4, (1, 32)), None, 32),)})
    with pytest.raises(DrawplateError) as error:
        QuantizeActivations().run(stored(MLP, QuantizeWeights()), Env(target=target))
    assert str(error.value) == (
        "no activation can be encoded as 'i8 block -1 asym scale f32 dynamic'\n"
        "  why:   3 linears (first: gate, up): with a weight of 'i4 block 1x32 sym scale f32' the target computes on "
        "floating-point activations"
    )


def test_another_width_on_top_is_an_error():
    with pytest.raises(DrawplateError) as error:
        QuantizeActivations(4).run(stored(MLP, QuantizeWeights(), QuantizeActivations()), Env())
    assert str(error.value) == (
        "what gate reads is encoded as 'i8 block -1 asym scale f32 dynamic' already\n"
        "  why:   encoding it as 'i4 block -1 asym scale f32 dynamic' would round it twice\n"
        "  do:    name quantize-activations once"
    )


def test_without_stored_weights_it_is_not_run():
    with pytest.raises(DrawplateError, match=r"requires 'linears.quantised', which does not hold"):
        run_passes(parse_program(MLP), [QuantizeActivations()], Env())
