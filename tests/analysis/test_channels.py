"""Channels through views: the same as pushing every position's channels through them by force."""

import pytest
import torch
from graphkit import HEAD, attention, program
from hypothesis import given, settings
from hypothesis import strategies as st

from drawplate.analysis.bases import Barrier
from drawplate.analysis.channels import Stop, channels, value_paths

WIDTH = 24
BATCH, LENGTH = 3, 5  # no length is one of the channels', so that a mix-up shows


def test_a_fused_weight_whose_heads_interleave():
    """[head, (q, k, v), 4]: rows 8 to 12 of each head's twelve are its values'."""
    lines = """  %b = aten.sym_size.int(%i, 0)
  %s = aten.sym_size.int(%i, 1)
  %t = aten.embedding(@e, %i)
  %f = aten.linear(%t, @qkv, @bias)
  %h = aten.reshape(%f, [%b, %s, 2, 12])
  %p = aten.permute(%h, [0, 2, 1, 3])
  %c = aten.chunk(%p, 3, -1)
  %q = getitem(%c, 0)
  %k = getitem(%c, 1)
  %v = getitem(%c, 2)
  %a = aten.scaled_dot_product_attention(%q, %k, %v, None, 0.0, True)
  %at = aten.transpose.int(%a, 1, 2)
  %ar = aten.reshape(%at, [%b, %s, 8])
  %y = aten.linear(%ar, @o)
  return %y"""
    (path,) = value_paths(program(lines, qkv=(24, 8), bias=(24,)))
    assert path.rows.tolist() == [[8, 9, 10, 11], [20, 21, 22, 23]]
    assert [columns.tolist() for _, columns in path.readers] == [[[0, 1, 2, 3], [4, 5, 6, 7]]]


def test_grouped_heads_share_their_values():
    grouped = (
        attention("  %v = aten.linear(%t, @v)\n  %vh = aten.reshape(%v, [%b, %s, 1, 4])\n"
                  "  %vt = aten.transpose.int(%vh, 1, 2)\n")
        .replace("aten.reshape(%k, [%b, %s, 2, 4])", "aten.reshape(%k, [%b, %s, 1, 4])")
        .replace("0.0, True)", "0.0, True, enable_gqa=True)")
    )  # fmt: skip
    (path,) = value_paths(program(grouped, v=(4, 8), k=(4, 8)))
    assert path.rows.tolist() == [[0, 1, 2, 3]]
    assert path.readers[0][1].shape == (2, 4)


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (attention("  %v = aten.silu(%t)\n  %vh = aten.reshape(%v, [%b, %s, 2, 4])\n"
                   "  %vt = aten.transpose.int(%vh, 1, 2)\n"),
         "the values come from 'silu', not from a linear"),
        (attention("  %v = aten.linear(%t, @v)\n  %vt = aten.reshape(%v, [%b, 2, %s, 4])\n"),
         "channels and positions are mixed in 'reshape'"),
        (attention("  %v = aten.linear(%t, @q)\n  %vh = aten.reshape(%v, [%b, %s, 2, 4])\n"
                   "  %vt = aten.transpose.int(%vh, 1, 2)\n"), "its weight is computed, or read elsewhere too"),
        (attention(result="  %g = aten.sigmoid(%a)\n  %at = aten.transpose.int(%g, 1, 2)\n"
                   "  %ar = aten.reshape(%at, [%b, %s, 8])\n  %y = aten.linear(%ar, @o)\n  return %y"),
         "the attended values are read by 'sigmoid'"),
        (attention(result="  %at = aten.transpose.int(%a, 1, 2)\n  %ar = aten.reshape(%at, [%b, %s, 8])\n"
                   "  %y = aten.linear(%ar, @o)\n  return [%y, %v]"), "rows of the values are read elsewhere too"),
    ],
)  # fmt: skip
def test_a_path_that_is_barred_says_why(lines, why):
    (barrier,) = value_paths(program(lines))
    assert isinstance(barrier, Barrier)
    assert barrier.why == why


def test_a_fixed_batch_is_told():
    head = HEAD.replace("%i: i64[b, s]", "%i: i64[2, s]").replace("1 <= b <= 4, ", "")
    lines = attention().replace("  %b = aten.sym_size.int(%i, 0)\n", "").replace("%b,", "2,")
    (barrier,) = value_paths(program(lines, head))
    assert barrier.why == "a length other than the channels' is fixed"


def shapes(axes):
    return "[" + ", ".join(str(a) if isinstance(a, int) else f"%{a}" for a in axes) + "]"


@st.composite
def chains(draw):
    """Lines of random views of %x [b, s, 24], some of which mix positions and channels."""
    axes, lines = ["b", "s", WIDTH], []
    for number in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["split", "join", "swap", "slice", "permute", "mix"]))
        fixed = [i for i, a in enumerate(axes) if isinstance(a, int)]
        at = draw(st.sampled_from(fixed))
        joined = [i for i in fixed if i + 1 in fixed]
        if kind == "split" and axes[at] % 2 == 0 and len(axes) < 6:
            axes[at : at + 1] = draw(st.sampled_from([[2, axes[at] // 2], [axes[at] // 2, 2]]))
            call = f"aten.reshape(%x{number}, {shapes(axes)})"
        elif kind == "join" and joined:
            i = draw(st.sampled_from(joined))
            axes[i : i + 2] = [axes[i] * axes[i + 1]]
            call = f"aten.reshape(%x{number}, {shapes(axes)})"
        elif kind == "slice" and axes[at] > 2:
            start = draw(st.integers(0, axes[at] - 2))
            call = f"aten.slice.Tensor(%x{number}, {at}, {start}, {axes[at]}, 2)"
            axes[at] = len(range(start, axes[at], 2))
        elif kind == "mix" and at > 0:
            axes = axes[:]
            axes[at - 1], axes[at] = axes[at], axes[at - 1]  # not what a transpose does
            call = f"aten.reshape(%x{number}, {shapes(axes)})"
        else:
            order = draw(st.permutations(range(len(axes))))
            axes = [axes[i] for i in order]
            call = f"aten.permute(%x{number}, {list(order)})"
        lines.append(f"  %x{number + 1} = {call}")
    return lines


@given(chains())
@settings(max_examples=40, deadline=None)
def test_random_views_agree_with_brute_force(lines):
    text = "\n".join(
        [
            "  %b = aten.sym_size.int(%i, 0)\n  %s = aten.sym_size.int(%i, 1)\n  %t = aten.embedding(@e, %i)",
            "  %x0 = aten.linear(%t, @w)",
            *lines,
            f"  %y = aten.silu(%x{len(lines)})\n  return %y",
        ]
    )
    source = program(text, w=(WIDTH, 8))
    (root,) = source.nodes(torch.ops.aten.linear.default)
    forced = torch.arange(WIDTH).expand(BATCH, LENGTH, WIDTH)
    place = torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH, 1).expand(BATCH, LENGTH, WIDTH)
    for line in lines:
        forced, place = (_by_hand(line, x) for x in (forced, place))
    try:
        ((end, numbers),) = channels(root)
    except Stop:
        return  # barred is always right; that plain views are not barred is held above
    symbolic = [i for i, n in enumerate(end.meta["val"].shape) if not isinstance(n, int)]
    assert torch.equal(forced, numbers.expand(forced.shape))
    others = [i for i in range(place.dim()) if i not in symbolic]
    assert all(bool((place.select(i, 0).unsqueeze(i) == place).all()) for i in others)


def _by_hand(line, x):
    """The view of a line on a tensor of real lengths."""
    call = line.partition(" = aten.")[2].replace("%b", str(BATCH)).replace("%s", str(LENGTH))
    name, _, rest = call.partition("(")
    arguments = eval(f"[{rest.partition(', ')[2].removesuffix(')')}]")
    target = {"reshape": "reshape.default", "permute": "permute.default", "slice.Tensor": "slice.Tensor"}[name]
    return getattr(getattr(torch.ops.aten, target.split(".")[0]), target.split(".")[1])(x, *arguments)
