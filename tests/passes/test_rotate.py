"""rotate: the function stays whatever shares, reads or mixes the channels; what cannot be turned says why."""

import pytest
import torch
from architectures import DECODERS, captured
from graphkit import FED, HEAD, attention, program

from drawplate.errors import PassError
from drawplate.passbase import Env
from drawplate.passes.add_kv_cache import AddKvCache
from drawplate.passes.fold_norms import FoldNorms
from drawplate.passes.last_position import LastPosition
from drawplate.passes.rotate import Rotate
from drawplate.runner import run_passes
from drawplate.testing import check_pass

ONLINE = torch.ops.drawplate.hadamard.default
SHAPES = {"g": (8,), "b": (8,), "one": (1, 8), "wide": (8, 1), "c": (4, 8), "g3": (1, 1, 8)}
EVERYTHING = Rotate(r3=True, r4=True, maps=99)

SUSPECTS = {
    "an input in the stream": """  %t = aten.embedding(@e, %i)
  %z = aten.linear(%x0, @w)
  %u = aten.add.Tensor(%t, %z)
  %v = aten.add.Tensor(%u, %x0)
  %y = aten.linear(%v, @h)
  return %y""",
    "a weight that something else reads": """  %t = aten.embedding(@e, %i)
  %a = aten.linear(%t, @w)
  %m = aten.exp(@w)
  %s = aten.sum.dim_IntList(%m, [0])
  %o = aten.linear(%a, @h)
  %y = aten.mul.Tensor(%o, %s)
  return %y""",
    "a weight and its transpose": """  %t = aten.embedding(@e, %i)
  %a = aten.linear(%t, @w)
  %wt = aten.transpose.int(@w, 0, 1)
  %c = aten.linear(%a, %wt)
  %y = aten.linear(%c, @h)
  return %y""",
    "a table whose rows are written": """  %t = aten.embedding(@e, %i)
  %a = aten.linear(%t, @w)
  %c = aten.linear(%a, @e)
  %y = aten.linear(%c, @h)
  return %y""",
    "a gate of one channel": """  %t = aten.embedding(@e, %i)
  %g1 = aten.linear(%t, @one)
  %a = aten.mul.Tensor(%t, %g1)
  %z = aten.linear(%g1, @wide)
  %c = aten.add.Tensor(%a, %z)
  %y = aten.linear(%c, @h)
  return %y""",
    "one channel added to all": """  %t = aten.embedding(@e, %i)
  %g1 = aten.linear(%t, @one)
  %a = aten.linear(%t, @h)
  %z = aten.linear(%g1, @wide)
  %c = aten.add.Tensor(%a, %g1)
  %y = aten.add.Tensor(%c, %z)
  return %y""",
    "a gate for each row": """  %t = aten.embedding(@e, %i)
  %n = aten.linear(%t, @one)
  %g1 = aten.sigmoid(%n)
  %a = aten.linear(%t, @w)
  %u = aten.mul.Tensor(%a, %g1)
  %v = aten.add.Tensor(%t, %u)
  %y = aten.linear(%v, @h)
  return %y""",
    "factors of three axes": """  %t = aten.embedding(@e, %i)
  %n = aten.rms_norm(%t, [8])
  %a = aten.mul.Tensor(%n, @g3)
  %y = aten.linear(%a, @h)
  return %y""",
    "a weight in a concatenation": """  %t = aten.embedding(@e, %i)
  %f = aten.reshape(%t, [-1, 8])
  %k = aten.cat([@c, %f], 0)
  %l = aten.linear(%k, @w)
  %q = aten.add.Tensor(%k, %l)
  %y = aten.linear(%q, @h)
  return %y""",
    "a weight through a linear": """  %t = aten.embedding(@e, %i)
  %a = aten.linear(%t, @w)
  %k = aten.linear(@c, @w)
  %m = aten.sum.dim_IntList(%k, [0])
  %o = aten.linear(%t, @h)
  %q = aten.mul.Tensor(%o, %m)
  %y = aten.add.Tensor(%q, %a)
  return %y""",
    "a weight whose rows are values": """  %t = aten.embedding(@e, %i)
  %a = aten.linear(%t, @sq)
  %o = aten.linear(%a, @h)
  %k = aten.linear(@sq, @w)
  %m = aten.sum.dim_IntList(%k, [0])
  %n = aten.select.int(%k, 0, 0)
  %p = aten.mul.Tensor(%o, %m)
  %y = aten.add.Tensor(%p, %n)
  return %y""",
    "one norm's weight at two maps": """  %t = aten.embedding(@e, %i)
  %n = aten.rms_norm(%t, [8], @g)
  %a = aten.linear(%n, @w)
  %s = aten.silu(%n)
  %m = aten.rms_norm(%a, [8], @g)
  %c = aten.add.Tensor(%t, %m)
  %z = aten.linear(%s, @k)
  %u = aten.add.Tensor(%c, %z)
  %y = aten.linear(%u, @h)
  return %y""",
    "an online transform behind a map": """  %t = aten.embedding(@e, %i)
  %a = aten.mul.Tensor(%t, @g)
  %c = aten.linear(%a, @w)
  %z = aten.silu(%a)
  %k = aten.linear(%z, @k)
  %u = aten.add.Tensor(%t, %k)
  %l = aten.linear(%u, @h)
  %y = aten.mul.Tensor(%l, %c)
  return %y""",
    "a bias that two linears share, by name": """  %t = aten.embedding(@e, %i)
  %a = aten.linear(%t, @w, bias=@b)
  %c = aten.linear(%a, @k, bias=@b)
  %u = aten.add.Tensor(%t, %c)
  %y = aten.linear(%u, @h)
  return %y""",
    "two embeddings of one table, and a step between positions": """  %t = aten.embedding(@e, %i)
  %t2 = aten.embedding(@e, %i)
  %u = aten.add.Tensor(%t, %t2, alpha=3)
  %f = aten.slice.Tensor(%u, 1, 0, 9223372036854775807, 2)
  %d = aten.div.Tensor(%f, 4)
  %n = aten.neg(%d)
  %y = aten.linear(%n, @h)
  return %y""",
    "a value that leaves": """  %t = aten.embedding(@e, %i)
  %y = aten.linear(%t, @h)
  %v = aten.reshape(%t, [-1, 2, 4])
  return [%y, %v]""",
    "encoded activations": """  %t = aten.embedding(@e, %i)
  %q = drawplate.encode(%t, "i8 block -1 asym scale f32 dynamic")
  %a = aten.linear(%q, @w)
  %y = aten.linear(%a, @h)
  return %y""",
    "heads by a reshape that mixes positions": attention(
        "  %v = aten.linear(%t, @v)\n  %vt = aten.reshape(%v, [%b, 2, %s, 4])\n"
    ),
    "keys that are queries": attention(
        mixed="  %a = aten.scaled_dot_product_attention(%qt, %qt, %vt, None, 0.0, True)\n"
        "  %a2 = aten.scaled_dot_product_attention(%kt, %qt, %kt, None, 0.0, True)\n",
        result="  %at = aten.add.Tensor(%a, %a2)\n  %au = aten.transpose.int(%at, 1, 2)\n"
        "  %ar = aten.reshape(%au, [%b, %s, 8])\n  %y = aten.linear(%ar, @o)\n  return %y",
    ),
    "one position is picked": attention(
        result="  %at = aten.select.int(%a, 2, 3)\n  %ar = aten.reshape(%at, [%b, 8])\n"
        "  %y = aten.linear(%ar, @o)\n  return %y"
    ),
}


@pytest.mark.parametrize("lines", SUSPECTS.values(), ids=SUSPECTS)
def test_the_function_stays(lines):
    source = program(lines, FED if "%x0" in lines else HEAD, **SHAPES)
    check_pass(EVERYTHING, FoldNorms("split").run(source, Env()))


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (SUSPECTS["an input in the stream"], "(r1): it comes into the program at x0"),
        (SUSPECTS["heads by a reshape that mixes positions"], "channels and positions are mixed in 'reshape'"),
        (SUSPECTS["keys that are queries"], "the values are read as something else too"),
        (SUSPECTS["a value that leaves"], "channels are not interchangeable in 'reshape'"),
        (SUSPECTS["encoded activations"], "e (r1): channels are not interchangeable in 'encode'"),
        (SUSPECTS["one position is picked"], "channels cannot be followed through 'select'"),
    ],
)
def test_what_is_not_turned_says_why(lines, why):
    outcome = check_pass(Rotate(), program(lines, FED if "%x0" in lines else HEAD, **SHAPES))
    assert any(why in str(r) for r in outcome.refusals), [str(r) for r in outcome.refusals]


def test_a_width_without_a_hadamard_matrix_is_turned_by_another_and_that_is_told():
    lines = "  %t = aten.embedding(@e, %i)\n  %y = aten.linear(%t, @h)\n  return %y"
    free = program(lines, e=(8, 14), h=(8, 14))
    outcome = check_pass(Rotate(), free)
    assert [str(r) for r in outcome.refusals] == [
        "r1.e (r1): no Hadamard matrix of order 14 is known: a random orthogonal one turns it instead"
    ]
    assert not check_pass(Rotate("random"), free).refusals


@pytest.mark.parametrize(("block", "blocks"), [(0, [12]), (4, [4])])
def test_online_blocks(block, blocks):
    lines = "  %t = aten.embedding(@e, %i)\n  %u = aten.linear(%t, @up)\n  %a = aten.silu(%u)\n"
    source = program(f"{lines}  %y = aten.linear(%a, @down)\n  return %y", up=(12, 8), down=(8, 12))
    done = check_pass(Rotate(r4=True, block=block), source).program
    assert [n.args[1] for n in done.nodes(ONLINE)] == blocks
    with pytest.raises(PassError, match="block=5 fits nowhere") as error:
        run_passes(source, [Rotate(r4=True, block=5)], Env())
    assert "(r4): its 12 channels cannot be turned 5 at a time by a Hadamard matrix" in str(error.value)


def test_in_a_cached_program_the_stream_is_turned_and_the_rest_says_why():
    passes = [AddKvCache(16), LastPosition(), FoldNorms(), EVERYTHING]
    outcome = run_passes(captured("llama"), passes, Env())
    assert {r.op for r in outcome.refusals} == {"aten.rms_norm", "r2", "r3"}
    assert {r.fix for r in outcome.refusals if r.op == "r3"} == {"turn it before add-kv-cache"}
    assert any("map" in name for name in outcome.program.weights)


@pytest.mark.parametrize("name", DECODERS)
def test_every_architecture_keeps_its_function(name):
    """The worst case of each: every map is allowed. Split tables only matter where a table is tied."""
    source = captured(name)
    for tied in ("keep", "split") if name in ("llama", "gemma2", "gpt2", "cohere") else ("keep",):
        outcome = run_passes(source, [FoldNorms(tied), EVERYTHING], Env())
        assert max(c.error for c in outcome.certificates if c.invariant == "SAME_FUNCTION") <= 1e-9
        assert list(outcome.program.nodes(ONLINE))
