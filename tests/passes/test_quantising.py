"""quantize-weights, quantize-embedding and pack-weights: which weights, how, and what is refused."""

import pytest
import torch
from passkit import CAUSAL, MLP, TIED, WIDTHS

from drawplate.encoding import Encoding, QTensor, encode
from drawplate.errors import DrawplateError
from drawplate.passbase import Env
from drawplate.passes.cast import Cast
from drawplate.passes.pack_weights import PackWeights
from drawplate.passes.quantize_embedding import QuantizeEmbedding
from drawplate.passes.quantize_weights import QuantizeWeights
from drawplate.program import Program
from drawplate.runner import run_passes
from drawplate.testing import check_pass
from drawplate.text import parse_program

CHANNELS8 = Encoding(8, (1, -1))


def run(pass_, program: str | Program) -> Program:
    return check_pass(pass_, program).program


@pytest.mark.parametrize(
    ("where", "names"),
    [("body", {"gate", "up", "down"}), ("head", {"head"}), ("all", {"gate", "up", "down", "head"})],
)
def test_where_says_which_linears(where, names):
    assert set(run(QuantizeWeights(where), MLP).encodings) == names


@pytest.mark.parametrize("range_", ["minmax", "mse"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [(1, 32), (1, -1), (-1, -1)])
def test_each_weight_is_what_the_reference_makes_of_it(range_, symmetric, block):
    pass_ = QuantizeWeights("all", 3, block, symmetric, "bf16", range=range_)
    after, before = run(pass_, MLP), parse_program(MLP)
    for name, stored in after.weights.items():
        if isinstance(stored, QTensor):
            expected = encode(before.weights[name], pass_.encoding, method=range_)
            assert torch.equal(stored.codes, expected.codes)
            assert torch.equal(stored.grid.scale, expected.grid.scale)
            assert torch.equal(stored.grid.zero_point, expected.grid.zero_point)
        else:
            assert torch.equal(stored, before.weights[name])


def test_a_tied_table_is_stored_once_for_both_readers():
    program = run(QuantizeEmbedding(), TIED)
    again = run(QuantizeWeights("head", 8, (1, -1)), program)
    assert again.encodings == {"embed": CHANNELS8}
    assert again.weights["embed"] is program.weights["embed"]
    assert len(again.readers("embed")) == 2


@pytest.mark.parametrize("first", ["embedding", "head"])
def test_a_tied_table_in_two_encodings_is_an_error_that_explains_the_tie(first):
    passes = [QuantizeEmbedding(), QuantizeWeights("head", 4)]
    passes = passes if first == "embedding" else passes[::-1]
    there, asked = (p.encoding for p in passes)
    with pytest.raises(DrawplateError) as error:
        run_passes(parse_program(TIED), passes, Env())
    assert str(error.value).split("\n", 1)[1] == (
        "  where: embed\n"
        "  why:   it is one table that both the embedding and the head read, and it is in the file once\n"
        "  do:    give quantize-embedding and quantize-weights{where=head} the same encoding, or leave one out"
    )
    assert f"embed is stored as '{there}' and cannot also be stored as '{asked}'" in str(error.value)


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("tokens=1", "tokens=1 is not above 1"),
        ("damping=0.0", "damping=0.0 is not above 0"),
        ("spill=-1", "spill=-1 is below 0"),
    ],
)
def test_options_that_cannot_be_are_refused_one_by_one(option, why):
    name, value = option.split("=")
    with pytest.raises(ValueError, match=f"^{why}$"):
        QuantizeWeights(**{name: float(value) if "." in value else int(value)})


def test_a_weight_is_not_rounded_twice():
    with pytest.raises(DrawplateError) as error:
        run_passes(parse_program(MLP), [QuantizeWeights(), QuantizeWeights("all", 8, (1, -1))], Env())
    assert str(error.value) == (
        "pass 'quantize-weights{where=all,bits=8,block=1x-1}' cannot be done: "
        "gate is stored as 'i4 block 1x32 sym scale f32' already\n"
        "  where: gate\n"
        "  why:   storing it as 'i8 block 1x-1 sym scale f32' would round it a second time\n"
        "  do:    quantise each weight once: where=body, where=head and where=all overlap"
    )


def test_a_weight_that_the_group_does_not_divide_is_refused_and_the_others_are_done():
    program = WIDTHS.replace("48, 64", "96, 64").replace("64, 48", "64, 96")
    outcome = check_pass(QuantizeWeights("all", block=(1, 64)), program)
    assert set(outcome.program.encodings) == {"first"}
    assert [str(r) for r in outcome.refusals] == [
        (
            "second (aten.linear): a group size of 64 does not divide axis 1 of length 96; "
            "use a group of 16, 32, or -1 for the whole axis"
        )
    ]


def test_a_group_that_divides_nothing_is_an_error_with_every_site():
    with pytest.raises(DrawplateError) as error:
        QuantizeWeights("all", block=(1, 128)).run(parse_program(WIDTHS), Env())
    assert str(error.value) == (
        "no weight can be stored as 'i4 block 1x128 sym scale f32'\n"
        "  why:   first (aten.linear): a group size of 128 does not divide axis 1 of length 64; "
        "use a group of 16, 32, 64, or -1 for the whole axis\n"
        "         second (aten.linear): a group size of 128 does not divide axis 1 of length 48; "
        "use a group of 16, or -1 for the whole axis"
    )


def test_what_many_weights_have_in_common_is_told_once():
    with pytest.raises(DrawplateError) as error:
        QuantizeWeights("body", block=(1, 7)).run(parse_program(CAUSAL), Env())
    assert str(error.value) == (
        "no weight can be stored as 'i4 block 1x7 sym scale f32'\n"
        "  why:   3 linears (first: q, k): a group size of 7 does not divide axis 1 of length 32\n"
        "  do:    use a group of 16, 32, or -1 for the whole axis"
    )


def test_a_damaged_weight_is_named():
    program = parse_program(MLP)
    program.weights["up"][3, 5] = torch.nan
    with pytest.raises(DrawplateError) as error:
        QuantizeWeights().run(program, Env())
    assert error.value.what == "up cannot be stored as 'i4 block 1x32 sym scale f32'"
    assert error.value.why == "it has elements that are inf or nan"


def test_a_cast_weight_is_refused():
    with pytest.raises(DrawplateError) as error:
        run_passes(parse_program(MLP), [Cast(), QuantizeWeights("head", block=(1, -1))], Env())
    assert "head (aten.linear): it is bfloat16, and a stored weight reads back as float32" in str(error.value)


def test_nothing_to_store_is_said():
    program = parse_program(WIDTHS)
    env = Env()
    assert QuantizeEmbedding().run(program, env) is program
    assert [str(r) for r in env.refusals] == ["widths: there is no embedding to store as integers"]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8, 12])
def test_packing_keeps_every_integer(bits):
    program = run(QuantizeWeights("all", bits), MLP)
    packed = run(PackWeights(), program)
    for name, weight in packed.weights.items():
        if isinstance(weight, QTensor):
            assert weight.packed
            assert torch.equal(weight.integers(), program.weights[name].codes)
            assert weight.codes.nbytes + weight.grid.scale.nbytes == weight.nbytes
    assert packed.encodings == program.encodings


def test_packing_needs_something_to_pack():
    with pytest.raises(DrawplateError, match=r"requires 'weights.quantised'"):
        run_passes(parse_program(MLP), [PackWeights()], Env())
