"""fold-norms: what goes into the readers, what becomes an RMS norm, and what stays with its reason."""

import pytest
import torch
from architectures import captured
from graphkit import FED, HEAD, program

from drawplate.passbase import Env
from drawplate.passes.fold_norms import FoldNorms, split_tables
from drawplate.program import Program
from drawplate.testing import check_pass

aten = torch.ops.aten
VECTORS = {"g": (8,), "g2": (8,), "b": (8,), "b2": (8,)}


def norm_weights(done: Program) -> list[str]:
    """The weights that norms still have."""
    norms = done.nodes(aten.rms_norm.default, aten.layer_norm.default)
    return [str(n.args[2].target) for n in norms if len(n.args) > 2 and n.args[2] is not None]


@pytest.mark.parametrize(
    ("lines", "left"),
    [
        pytest.param(
            """  %t = aten.embedding(@e, %i)
  %n = aten.rms_norm(%t, [8], weight=@g, eps=0.25)
  %y = aten.linear(%n, @w)
  return %y""",
            [],
            id="arguments by name",
        ),
        pytest.param(
            """  %t = aten.embedding(@e, %i)
  %n = aten.rms_norm(%t, [8], @g)
  %a = aten.linear(%n, @w)
  %u = aten.add.Tensor(%t, %a)
  %m = aten.rms_norm(%u, [8], @g)
  %c = aten.linear(%m, @w)
  %y = aten.mul.Tensor(%a, %c)
  return %y""",
            [],
            id="layers that share their weights",
        ),
        pytest.param(
            """  %t = aten.embedding(@e, %i)
  %n = aten.rms_norm(%t, [8], @g)
  %a = aten.linear(%n, @w, @g)
  %y = aten.mul.Tensor(%t, %a)
  return %y""",
            [],
            id="a weight that is a bias too",
        ),
        pytest.param(
            """  %t = aten.embedding(@e, %i)
  %n = aten.layer_norm(%t, [8], @g, @b)
  %y = aten.linear(%n, @w)
  return %y""",
            [],
            id="a layer norm's own eps",
        ),
        pytest.param(
            """  %t = aten.embedding(@e, %i)
  %n = aten.layer_norm(%t, [8], @g, @b, 0.1)
  %a = aten.linear(%n, @w)
  %m = aten.layer_norm(%a, [8], @g2, @b2, 0.1)
  %y = aten.linear(%m, @h)
  return %y""",
            [],
            id="a bias that goes into the next norm's input",
        ),
        pytest.param(
            """  %t = aten.embedding(@e, %i)
  %n = aten.layer_norm(%t, [8], @g, @b, 0.1)
  %a = aten.linear(%n, @w)
  %m = aten.layer_norm(%t, [8], @g, @b2, 0.1)
  %c = aten.linear(%m, @w)
  %y = aten.mul.Tensor(%a, %c)
  return %y""",
            [],
            id="two biases through one weight",
        ),
        pytest.param(
            """  %t = aten.embedding(@e, %i)
  %n = aten.layer_norm(%t, [8], @g, @b, 0.1)
  %a = aten.linear(%n, @m.weight)
  %s = aten.silu(%a)
  %y = aten.add.Tensor(%s, @m.bias)
  return %y""",
            [],
            id="the name of the bias is taken",
        ),
        pytest.param(
            """  %t = aten.embedding(@e, %i)
  %n = aten.layer_norm(%t, [8], @g, @b, 0.1)
  %a = aten.linear(%n, @w, bias=@b2)
  %c = aten.linear(%n, @h, bias=@b2)
  %y = aten.mul.Tensor(%a, %c)
  return %y""",
            ["g"],
            id="a bias that two linears share",
        ),
    ],
)
def test_folded(lines, left):
    outcome = check_pass(FoldNorms(), program(lines, **VECTORS, **{"m.bias": (8,)}))
    assert norm_weights(outcome.program) == left
    assert not list(outcome.program.nodes(aten.layer_norm.default))


STAYS = {
    "its weight reads an input too": (
        """  %t = aten.embedding(@e, %i)
  %n = aten.rms_norm(%t, [8], @g)
  %a = aten.linear(%n, @w)
  %c = aten.linear(%x0, @w)
  %y = aten.mul.Tensor(%a, %c)
  return %y""",
        "g (aten.rms_norm): not folded: it comes into the program at x0",
    ),
    "something else reads it": (
        """  %t = aten.embedding(@e, %i)
  %n = aten.rms_norm(%t, [8], @g)
  %a = aten.linear(%n, @w)
  %s = aten.silu(%n)
  %u = aten.mul.Tensor(%a, %s)
  %y = aten.add.Tensor(%u, %x0)
  return %y""",
        "g (aten.rms_norm): not folded: channels are not interchangeable in 'silu' at silu_default",
    ),
    "nothing reads it": (
        """  %t = aten.embedding(@e, %i)
  %n = aten.rms_norm(%t, [8], @g)
  %y = aten.add.Tensor(%n, %x0)
  return %y""",
        "g (aten.rms_norm): not folded: it comes into the program at x0",
    ),
    "a table is tied": (
        """  %t = aten.embedding(@e, %i)
  %n = aten.rms_norm(%t, [8], @g)
  %l = aten.linear(%n, @e)
  %y = aten.add.Tensor(%l, %x0)
  return %y""",
        "g (aten.rms_norm): not folded: e reads it and is also looked up: a table that is tied stays one table",
    ),
    "it is added to a stream": (
        """  %t = aten.embedding(@e, %i)
  %a = aten.linear(%t, @w)
  %n = aten.rms_norm(%a, [8], @g)
  %u = aten.add.Tensor(%t, %n)
  %l = aten.linear(%u, @h)
  %y = aten.add.Tensor(%l, %x0)
  return %y""",
        "g (aten.rms_norm): not folded: its output is added to a stream that e writes too",
    ),
    "another norm reads it": (
        """  %t = aten.embedding(@e, %i)
  %n = aten.rms_norm(%t, [8], @g)
  %m = aten.rms_norm(%n, [8])
  %l = aten.linear(%m, @h)
  %y = aten.add.Tensor(%l, %x0)
  return %y""",
        (
            "g (aten.rms_norm): not folded: an RMS norm reads it, which a rotation goes through and a factor per "
            "channel does not"
        ),
    ),
    "two weights in a row": (
        """  %t = aten.embedding(@e, %i)
  %n = aten.rms_norm(%t, [8], @g)
  %m = aten.rms_norm(%n, [8], @g2)
  %l = aten.linear(%m, @h)
  %y = aten.add.Tensor(%l, %x0)
  return %y""",
        "g (aten.rms_norm): not folded: it goes on through g2",
    ),
    "a linear reads what a layer norm reads": (
        """  %t = aten.embedding(@e, %i)
  %n = aten.layer_norm(%t, [8], @g, @b)
  %a = aten.linear(%n, @w)
  %c = aten.linear(%t, @h)
  %u = aten.mul.Tensor(%a, %c)
  %y = aten.add.Tensor(%u, %x0)
  return %y""",
        "e (aten.layer_norm): stays a layer norm: h reads its input too, and would read it centred",
    ),
    "an RMS norm reads what a layer norm reads": (
        """  %t = aten.embedding(@e, %i)
  %n = aten.rms_norm(%t, [8])
  %m = aten.layer_norm(%n, [8], None, None, 0.1)
  %l = aten.linear(%m, @h)
  %y = aten.add.Tensor(%l, %x0)
  return %y""",
        "e (aten.layer_norm): stays a layer norm: an RMS norm reads its input too, and would read it centred",
    ),
    "a layer norm of an input": (
        """  %t = aten.embedding(@e, %i)
  %u = aten.add.Tensor(%t, %x0)
  %m = aten.layer_norm(%u, [8], @g, @b, 0.1)
  %y = aten.linear(%m, @h)
  return %y""",
        "e (aten.layer_norm): stays a layer norm: it comes into the program at x0",
    ),
    "a tied table in front of a layer norm": (
        """  %t = aten.embedding(@e, %i)
  %m = aten.layer_norm(%t, [8], @g, @b, 0.1)
  %l = aten.linear(%m, @e)
  %y = aten.add.Tensor(%l, %x0)
  return %y""",
        (
            "e (aten.layer_norm): stays a layer norm: e writes its input and is the head's too, which centring would "
            "change; use tied=split"
        ),
    ),
}


@pytest.mark.parametrize(("lines", "why"), STAYS.values(), ids=STAYS)
def test_what_stays_says_why(lines, why):
    outcome = check_pass(FoldNorms(), program(lines, FED, **VECTORS))
    assert [str(r) for r in outcome.refusals] == [why]


def test_a_table_that_is_split_is_the_head_s_under_its_own_name():
    tied = "  %t = aten.embedding(@e, %i)\n  %n = aten.rms_norm(%t, [8], @g)\n  %l = aten.linear(%n, @e)  // head\n"
    source = program(f"{tied}  %y = aten.mul.Tensor(%l, @head.weight)\n  return %y", **{"head.weight": (8,)}, g=(8,))
    done = split_tables(source)
    assert sorted(done.weights) == ["e", "g", "head.weight", "head.weight.2"]
    assert torch.equal(done.weights["head.weight.2"], source.weights["e"])
    outcome = check_pass(FoldNorms("split"), source)
    assert not outcome.refusals
    assert "g" not in outcome.program.weights


def test_a_folded_weight_is_rounded_once():
    source = program(
        "  %t = aten.embedding(@e, %i)\n  %n = aten.rms_norm(%t, [8], @g)\n  %y = aten.linear(%n, @w)\n  return %y",
        HEAD,
        g=(8,),
    )
    folded = check_pass(FoldNorms(), source).program.weights["w"]
    assert torch.equal(folded, (source.weights["w"].double() * source.weights["g"].double()).float())


def test_without_contents_it_refuses_the_same():
    from drawplate.rehearsal import without_contents

    source, (told, silent) = captured("gemma2"), (Env(), Env())
    FoldNorms().run(source, told)
    FoldNorms().run(without_contents(source), silent)
    assert told.refusals == silent.refusals
    assert len(told.refusals) == 5
