"""Rotary embeddings: half, interleaved, partial, and lookalikes."""

from __future__ import annotations

import pytest
import torch
from canonical.helpers import canonical, operators

from drawplate.canonical import unrecognised

X = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(0))


def tables(x, width, interleaved=False):
    """cos, sin [1, s, width], made inside the model."""
    angle = torch.arange(x.shape[2])[None, :, None] / 10000 ** (torch.arange(width // 2) / width)
    angle = angle.repeat_interleave(2, -1) if interleaved else torch.cat((angle, angle), -1)
    return angle.cos(), angle.sin()


def halves(x):
    return torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), dim=-1)


def chunks(x):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((-b, a), dim=-1)


def pairs(x):
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


@pytest.mark.parametrize(("turn", "interleaved"), [(halves, False), (chunks, False), (pairs, True)])
def test_whole_heads(turn, interleaved):
    def rope(m, x):
        cos, sin = tables(x, 8, interleaved)
        return x * cos.unsqueeze(1) + turn(x) * sin.unsqueeze(1)

    program = canonical(rope, X)
    (node,) = [n for n in program.nodes() if n.target is torch.ops.drawplate.rotary.default]
    assert node.args[3] is interleaved
    assert not {"neg", "stack", "unsqueeze"} & set(operators(program)[-1:])
    assert unrecognised(program) == []


def test_part_of_a_head():
    def rope(m, x):
        cos, sin = tables(x, 4)
        a, b = x[..., :4], x[..., 4:]
        return torch.cat((cos.unsqueeze(1) * a + sin.unsqueeze(1) * halves(a), b), dim=-1)

    program = canonical(rope, X)
    assert operators(program)[-2:] == ["drawplate.rotary", "cat"]
    assert unrecognised(program) == []


def test_the_other_sign_is_not_a_rotary_embedding():
    def other(m, x):
        cos, sin = tables(x, 8)
        return x * cos.unsqueeze(1) + torch.cat((x[..., 4:], -x[..., :4]), dim=-1) * sin.unsqueeze(1)

    program = canonical(other, X)
    assert "drawplate.rotary" not in operators(program)
    assert "a rotary embedding that is not x * cos + turned(x) * sin" in str(unrecognised(program)[0])
