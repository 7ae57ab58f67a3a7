"""Bases: what writes and reads them, what stands between them, and what bars them with the model's own line."""

import pytest
from architectures import captured
from graphkit import FED, HEAD, program

from drawplate.analysis.bases import Basis, Port, bases, rotatable

SHAPES = {
    "g": (8,),
    "b": (8,),
    "p1": (8,),
    "p": (16, 8),
    "one": (1, 8),
    "g3": (1, 1, 8),
    "up": (12, 8),
    "down": (8, 12),
}
STREAM = """  %t = aten.embedding(@e, %i)
  %n = aten.rms_norm(%t, [8])
  %u = aten.linear(%n, @up)
  %a = aten.silu(%u)
  %d = aten.linear(%a, @down, @b)
  %v = aten.add.Tensor(%t, %d)
  %y = aten.linear(%v, @h)
  return %y"""


def stream(lines: str, head: str = HEAD) -> Basis:
    """The basis that the table @e writes."""
    (found,) = [b for b in bases(program(lines, head, **SHAPES)) if Port("e", 1) in b.ports]
    return found


def test_a_residual_stream():
    found = stream(STREAM)
    assert found.writers == (Port("e", 1), Port("down", 0), Port("b", 0))
    assert found.readers == (Port("up", 1), Port("h", 1))
    assert (found.name, found.width, found.barriers) == ("e", 8, ())


def test_what_a_pointwise_function_reads_is_another_basis_and_barred():
    (inner,) = [b for b in bases(program(STREAM, **SHAPES)) if Port("up", 0) in b.ports]
    assert [str(b) for b in inner.barriers] == ["channels are not interchangeable in 'silu' at silu_default"]


def test_a_tied_table_writes_and_reads_and_its_norm_goes_in_and_out():
    found = stream("  %t = aten.embedding(@e, %i)\n  %n = aten.rms_norm(%t, [8], @g)\n  %y = aten.linear(%n, @e)\n"
                   "  return %y")  # fmt: skip
    assert found.ports == (Port("e", 1),)
    assert found.entering == found.leaving
    assert [d.weight for d in found.entering] == ["g"]


@pytest.mark.parametrize(
    "line",
    [
        "%z = aten.add.Tensor(%t, @p1)",
        "%z = aten.sub.Tensor(%t, @p1)",
        "%z = aten.mul.Tensor(%t, 3)",
        "%z = aten.div.Tensor(%t, 3)",
        "%z = aten.add.Tensor(%t, 0)",
        "%z = aten.neg(%t)",
        "%z = aten.to.dtype(%t, f64)",
        "%z = aten.transpose.int(%t, 0, 1)",
        "%z = aten.permute(%t, [1, 0, 2])",
        "%z = aten.unsqueeze(%t, 1)",
        "%z = aten.select.int(%t, 1, -1)",
        "%z = aten.cat([%t, %t], 1)",
        "%z = aten.repeat_interleave.self_int(%t, 2, 0)",
        "%z = drawplate.last_position(%t)",
        "%s = aten.sym_size.int(%t, 1)\n  %z = aten.slice.Tensor(%t, 1, 0, %s)",
        "%x = aten.embedding(@p, %i)\n  %z = aten.add.Tensor(%t, %x)",
        "%x = aten.slice.Tensor(@p, 0, 0, 1)\n  %z = aten.add.Tensor(%t, %x)",
    ],
)
def test_what_keeps_the_channels_keeps_the_basis(line):
    end = "  %w = aten.to.dtype(%z, f32)\n  %y = aten.linear(%w, @h)\n  return %y"
    found = stream(f"  %t = aten.embedding(@e, %i)\n  {line}\n{end}")
    assert not found.barriers
    assert Port("h", 1) in found.readers


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("%z = aten.add.Tensor(%t, 1)", "one number is added to all channels"),
        ("%z = aten.add.Tensor(%t, %x0)", "it comes into the program"),
        ("%z = aten.mul.Tensor(%t, %t)", "channels are not interchangeable in 'mul'"),
        ("%z = aten.mul.Tensor(%t, @g3)", "channels are not interchangeable in 'mul'"),
        ("%z = aten.div.Tensor(%t, @g)", "channels are not interchangeable in 'div'"),
        ("%z = aten.gelu(%t)", "channels are not interchangeable in 'gelu'"),
        ("%z = aten.layer_norm(%t, [8])", "'layer_norm' subtracts the mean over the channels"),
        ("%z = aten.slice.Tensor(%t, 2, 0, 4)", "channels are not interchangeable in 'slice'"),
        ("%z = aten.transpose.int(%t, 1, 2)", "channels are not interchangeable in 'transpose'"),
        ("%z = aten.reshape(%t, [-1, 4])", "channels are not interchangeable in 'reshape'"),
        ("%z = aten.cat([%t, %t], 2)", "channels are not interchangeable in 'cat'"),
        ("%z = aten.exp(@h)", "channels are not interchangeable in 'exp'"),
        ("%m = aten.neg(@h)\n  %z = aten.linear(%t, %m)", "it meets a weight that is computed"),
        ("%z = aten.linear(%t, @e)", "it leaves the program"),
    ],
)
def test_what_mixes_channels_is_a_barrier(line, why):
    text = (
        f"  %t = aten.embedding(@e, %i)\n  {line}\n  %y = aten.linear(%t, @h)\n  %r = aten.sum(%z)\n  return [%y, %r]"
    )
    if "leaves" in why:
        text = text.replace("[%y, %r]", "[%y, %r, %t]")
    assert why in [b.why for b in stream(text, FED if "%x0" in line else HEAD).barriers]


def test_a_barrier_has_the_model_s_own_line():
    (table,) = [b for b in bases(captured("cohere")) if Port("model.embed_tokens.weight", 1) in b.ports]
    assert {str(b).partition(":")[0] for b in table.barriers} == {
        "'layer_norm' subtracts the mean over the channels at modeling_cohere.py"
    }
    assert not rotatable([table])
