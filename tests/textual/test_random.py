"""Laws of the text, on random programs, constants and noise."""

import math
from collections.abc import Callable

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from drawplate.errors import TextError
from drawplate.text import differences, parse_program
from drawplate.textual.cursor import Cursor
from drawplate.textual.lexer import Source
from drawplate.textual.printer import constant_text
from drawplate.textual.words import CONSTANTS

KINDS = ("linear", "quantised", "norm", "add", "mul", "silu", "reshape", "transpose", "cat", "split", "encode")
ENCODINGS = (
    "i4[{}] block 1x4 sym scale bf16",
    "u8[{}] block 1x-1 asym scale f32",
    "i3[{}] block 1x2 sym scale f16 packed",
)


@st.composite
def programs(draw) -> str:
    """The text of a random valid program over %x: f32[b, s, n], built value by value with its shape kept alongside."""
    width = draw(st.sampled_from([4, 8]))
    values: list[tuple[str, str, int]] = [("%x", "b, s", width)]  # name, leading lengths, width
    weights: list[str] = []
    lines: list[str] = ["%b = aten.sym_size.int(%x, 0)", "%s = aten.sym_size.int(%x, 1)", "%bs = sym.mul(%b, %s)"]
    for i in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(KINDS))
        name, lead, n = draw(st.sampled_from(values))
        out = f"%v{i}"
        partners = [v for v in values if v[1:] == (lead, n)]
        site = draw(st.sampled_from(["", "  // layers.0", "  // a site // with slashes"]))
        match kind:
            case "linear" | "quantised":
                m = draw(st.sampled_from([4, 8]))
                shape = f"{m}, {n}"
                type_ = draw(st.sampled_from(ENCODINGS)).format(shape) if kind == "quantised" else f"f32[{shape}]"
                seed = draw(st.sampled_from(["", f" = seed({i})"]))
                weights.append(f"weight @w.{i} : {type_}{seed}")
                lines.append(f"{out} : f32[{lead}, {m}] = aten.linear({name}, @w.{i}){site}")
                values.append((out, lead, m))
            case "norm":
                eps = draw(st.floats(1e-9, 1, allow_subnormal=False))
                lines.append(f"{out} : f32[{lead}, {n}] = aten.rms_norm({name}, [{n}], None, {eps!r}){site}")
                values.append((out, lead, n))
            case "add" | "mul":
                other = draw(st.sampled_from(partners))[0]
                lines.append(f"{out} : f32[{lead}, {n}] = aten.{kind}.Tensor({name}, {other}){site}")
                values.append((out, lead, n))
            case "silu":
                lines.append(f"{out} = aten.silu({name}){site}")
                values.append((out, lead, n))
            case "encode":
                lines.append(f'{out} = drawplate.encode({name}, "i8 block -1 asym scale f32 dynamic")')
                values.append((out, lead, n))
            case "cat":
                lines.append(f"{out} : f32[{lead}, {2 * n}] = aten.cat([{name}, {name}], -1){site}")
                if n <= 8:
                    values.append((out, lead, 2 * n))
            case "split":
                lines += [f"%p{i} = aten.split.Tensor({name}, {n // 2}, -1)", f"{out} = getitem(%p{i}, 1){site}"]
            case "reshape" if lead == "b, s":
                lines.append(f"{out} : f32[b*s, {n}] = aten.reshape({name}, [%bs, {n}]){site}")
                values.append((out, "b*s", n))
            case "transpose" if lead == "b, s":
                lines.append(f"{out} : f32[s, b, {n}] = aten.transpose.int({name}, 0, 1){site}")
                values.append((out, "s, b", n))
    returned = draw(st.lists(st.sampled_from([v[0] for v in values]), min_size=1, max_size=3))
    body = "".join(f"  {line}\n" for line in [*weights, *lines, f"return ({', '.join(returned)},)"])
    header = f"program random(%x: f32[b, s, {width}]) where 1 <= b <= 4, 1 <= s <= 64"
    return f"// drawplate text 1\n{header} {{\n{body}}}"


@settings(max_examples=25, deadline=None)
@given(programs())
def test_parse_after_print_is_the_identity(text):
    program = parse_program(text)
    again = parse_program(str(program))
    assert not differences(program, again)
    assert str(again) == str(program)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([*CONSTANTS.values()])
CONSTANT = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=12,
)


def same(a: object, b: object) -> bool:
    """Equal, of the same type, nan being nan and -0.0 not 0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return repr(a) == repr(b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a == b


@given(CONSTANT)
@example([-0.0, 5e-324, 1.7976931348623157e308, -math.inf, math.nan, 10**30, -(1 << 63)])
@example(("\ud800", '"\\\n\t//', "\u2028", torch.bfloat16, torch.device("cpu"), torch.channels_last))
def test_a_constant_comes_back(value):
    cursor = Cursor(Source(constant_text(value)))
    assert same(cursor.constant(), value)
    assert cursor.token.kind == "end"


def complaint(read: Callable[[str], object], text: str) -> str:
    """Where a TextError says it is; anything else that is raised fails the test."""
    try:
        read(text)
    except TextError as error:
        return error.where
    return "line, column ^: no complaint"


@given(st.text())
@example("%")
@example('@"')
@example("1" * 5000)
@example("²")
def test_noise_gives_a_text_error_or_nothing(text):
    assert "^" in complaint(Source, text)
    assert "^" in complaint(parse_program, "// drawplate text 1\nprogram " + text)


SOURCE = """\
// drawplate text 1
program m(%x: f32[b, s, 4]) facts{f} where 1 <= b <= 4, 2 <= s <= 9 {
  weight @w : i4[4, 4] block 1x2 asym scale bf16 packed = seed(1)
  weight @v : f32[2] = [1, -1e-3]
  state @c : f32[3]
  %0 : f32[b, s, 4] = aten.linear(%x, @w)  // site
  %1 : int = aten.sym_size.int(%0, 1)
  %2 : f32[s*b, 4] = aten.reshape(%0, [-1, 4])
  %3 = aten.softmax.int(%0, -1, dtype=f32)
  return {"a": (%2, @v), "b": [%3, None, @c]}
}"""
WORDS = SOURCE.replace("\n", " \n ").split(" ")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_text_gives_a_text_error_or_a_program(data):
    words = list(WORDS)
    for _ in range(data.draw(st.integers(1, 3))):
        i = data.draw(st.integers(0, len(words) - 1))
        match data.draw(st.sampled_from(["drop", "double", "swap", "cut", "noise"])):
            case "drop":
                words[i] = ""
            case "double":
                words[i] = f"{words[i]} {words[i]}"
            case "swap":
                j = data.draw(st.integers(0, len(words) - 1))
                words[i], words[j] = words[j], words[i]
            case "cut":
                words[i] = words[i][: len(words[i]) // 2]
            case "noise":
                words[i] += data.draw(
                    st.sampled_from(["(", "]", "}", ",", "-", "9" * 20, "%0", "@w", "inf", '"', "**"])
                )
    assert "^" in complaint(parse_program, " ".join(words))
