"""Attention that is written out, grouped heads, and what a mask turns out to be."""

from __future__ import annotations

from itertools import count

import pytest
import torch
from canonical.helpers import canonical, operators
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as sdpa

from drawplate.canonical import canonicalise, unrecognised
from drawplate.canonical.grouped import SDPA
from drawplate.canonical.masks import Window, read_window
from drawplate.capture import capture
from drawplate.program import Dim, Program

X = torch.randn(2, 4, 7, 8, generator=torch.Generator().manual_seed(0))


def sdpa_of(program: Program) -> tuple[object, ...]:
    (node,) = program.nodes(SDPA)
    mask = node.args[3]
    if mask is not None:
        mask = (str(mask.target), mask.args[1])
    return mask, node.args[5], round(node.kwargs["scale"], 6), node.kwargs["enable_gqa"]


@pytest.mark.parametrize(
    ("function", "scale"),
    [
        (lambda m, x: torch.softmax(x @ x.transpose(-1, -2) / 2, dim=-1) @ x, 0.5),
        (lambda m, x: torch.matmul((x * 0.5) @ x.transpose(2, 3) * 0.5, torch.eye(7)).softmax(-1) @ x, None),
        (lambda m, x: torch.softmax(torch.matmul(x * 0.25, x.permute(0, 1, 3, 2)), -1, dtype=torch.float32) @ x, 0.25),
        (lambda m, x: sdpa(x, x, x), 8**-0.5),
    ],
    ids=count(1),
)
def test_written_out(function, scale):
    program = canonical(function, X)
    if scale is None:
        assert SDPA not in {n.target for n in program.nodes()}
    else:
        assert operators(program) == ["scaled_dot_product_attention"]
        assert sdpa_of(program) == (None, False, round(scale, 6), False)


def test_a_soft_cap_stays_written_out_and_is_listed():
    program = canonical(lambda m, x: torch.softmax(torch.tanh(x @ x.transpose(-1, -2)) * 3, -1) @ x, X)
    assert "softmax.int" in operators(program)
    (refusal,) = unrecognised(program)
    assert str(refusal).startswith("softmax (aten.softmax.int): attention whose logits are not q k^T * scale + mask")


@pytest.mark.parametrize(
    "repeat",
    [
        lambda x: x[:, :2, None].expand(2, 2, 2, 7, 8).reshape(2, 4, 7, 8),
        lambda x: x[:, :2].repeat_interleave(2, dim=1),
    ],
    ids=count(1),
)
def test_grouped_heads(repeat):
    program = canonical(lambda m, x: sdpa(x, repeat(x), repeat(x), is_causal=True), X)
    assert sdpa_of(program)[1:] == (True, round(8**-0.5, 6), True)
    assert operators(program) == ["slice.Tensor", "scaled_dot_product_attention"]


class Masked(nn.Module):
    """Attention under a mask that is made from positions."""

    def __init__(self, mask) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: Tensor, position_ids: Tensor) -> Tensor:
        return sdpa(x, x, x, attn_mask=self.mask(position_ids))


def masked(mask, longest: int = 10_000) -> Program:
    batch, length = Dim("b", 1, 8), Dim("s", 1, longest)
    module, positions = Masked(mask), torch.arange(7).repeat(2, 1)
    program = capture(
        module,
        example_inputs=[X, positions],
        dynamic={"x": {0: batch, 2: length}, "position_ids": {0: batch, 1: length}},
    ).program
    program = canonicalise(program)
    assert torch.allclose(program.module()(X, positions), module(X, positions), atol=1e-6)
    return program


def distance(p: Tensor) -> Tensor:
    return p[:, None, :, None] - p[:, None, None, :]


def index_distance(p: Tensor) -> Tensor:
    i = torch.arange(p.shape[1])
    return (i[:, None] - i)[None, None]


WINDOW = "drawplate.window_mask.default"


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (lambda p: distance(p) >= 0, (None, True)),
        (lambda p: ~(index_distance(p) < 0), (None, True)),
        (lambda p: torch.where(distance(p) >= 0, 0.0, torch.finfo(torch.float32).min), (None, True)),
        (lambda p: (distance(p) >= 0) & (distance(p) < 5), ((WINDOW, 5), False)),
        (lambda p: (index_distance(p) >= 0) & (index_distance(p) <= 5), ((WINDOW, 6), False)),
        (lambda p: (distance(p) >= 0) & (distance(p) < 4096), ((WINDOW, 4096), False)),
        (lambda p: (distance(p) >= 0) & ~(distance(p) > 4096), ((WINDOW, 4097), False)),
        (lambda p: (distance(p) >= 0) & (distance(p) + -4096 < 0), ((WINDOW, 4096), False)),
        (lambda p: (distance(p) >= 0) & (distance(p) < 50_000), (None, True)),  # longer than any input
    ],
    ids=count(1),
)
def test_masks(mask, expected):
    program = masked(mask)
    assert sdpa_of(program)[:2] == expected
    assert unrecognised(program) == []
    assert len(list(program.nodes())) <= 2


@pytest.mark.parametrize(
    "mask",
    [
        lambda p: distance(p).abs() < 3,  # looks ahead
        lambda p: (distance(p) >= 0) & (p[:, None, :, None] // 4 == p[:, None, None, :] // 4),  # chunks
        lambda p: (distance(p) >= 0) & (p[:, None, None, :] % 2 == 0),
        lambda p: distance(p) * -0.5,  # a bias
    ],
    ids=count(1),
)
def test_other_masks_stay_and_are_listed(mask):
    program = masked(mask)
    (node,) = program.nodes(SDPA)
    assert node.args[3] is not None
    assert [r.why for r in unrecognised(program)] == ["a mask made from positions that is neither causal nor a window"]


def test_read_window():
    i = torch.arange(6)
    causal = i[:, None] >= i
    assert read_window(causal) == Window(None)
    assert read_window(causal & (i[:, None] - i < 2)) == Window(2)
    assert read_window(causal.expand(3, 1, 6, 6)) == Window(None)
    assert read_window(~causal) is None
    assert read_window(torch.stack((causal, causal.T))) is None


def test_padding_is_read_unspread():
    class Padded(nn.Module):
        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            mask = attention_mask.bool()[:, None, None, :].expand(-1, 1, x.shape[2], -1)
            return sdpa(x, x, x, attn_mask=mask & torch.ones(x.shape[2], 1, dtype=torch.bool))

    keys = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]])
    program = canonicalise(capture(Padded(), example_inputs=[X, keys]).program)
    assert operators(program) == ["ne.Scalar", "unsqueeze", "unsqueeze", "scaled_dot_product_attention"]
    assert torch.allclose(program.module()(X, keys), Padded()(X, keys), atol=1e-6)
