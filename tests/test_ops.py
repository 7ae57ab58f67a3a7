"""The drawplate operators: each against the formula or the ATen op that it stands for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

import drawplate.ops  # noqa: F401  (registers the operators)
from drawplate.encoding import fake_quantize_dynamic, per_token
from drawplate.errors import DrawplateError
from drawplate.hadamard import apply
from drawplate.text import parse_program

ops = torch.ops.drawplate


def angles(s: int, d: int, *, interleaved: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, [1, s, d], of positions 0 .. s - 1."""
    f = torch.arange(s, dtype=torch.float64)[:, None] * 100.0 ** -(torch.arange(d // 2, dtype=torch.float64) / d)
    both = f.repeat_interleave(2, -1) if interleaved else torch.cat((f, f), -1)
    return both.cos()[None], both.sin()[None]


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_turns_pairs_as_complex_numbers(interleaved: bool) -> None:
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    cos, sin = angles(5, 8, interleaved=interleaved)
    y = ops.rotary(x, cos, sin, interleaved)
    pairs = x.unflatten(-1, (4, 2)) if interleaved else torch.stack((x[..., :4], x[..., 4:]), -1)
    turn = torch.polar(
        torch.ones(5, 4, dtype=torch.float64),
        torch.atan2(sin[0], cos[0])[:, :: 2 if interleaved else 1][:, :4],
    )
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn)
    expected = turned.flatten(-2) if interleaved else torch.cat((turned[..., 0], turned[..., 1]), -1)
    assert torch.allclose(y, expected, atol=1e-12)


@pytest.mark.parametrize("window", [1, 3, 9])
def test_window_mask_is_what_it_says(window: int) -> None:
    mask = ops.window_mask(torch.zeros(1, 1, 6, 4), window)
    for i in range(6):
        for j in range(6):
            assert bool(mask[i, j]) == (i - window < j <= i)


def test_encode_is_the_reference_quantiser_and_passes_gradients() -> None:
    x = torch.randn(2, 5, 16, requires_grad=True)
    y = ops.encode(x, str(per_token()))
    assert torch.equal(y, fake_quantize_dynamic(x, per_token()))
    y.sum().backward()
    assert x.grad is not None
    assert bool((x.grad.round(decimals=5) == 1).sum() >= 2 * 5 * 15)  # a token's largest element may clip


@given(
    steps=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    groups=st.integers(1, 3),
    window=st.sampled_from([0, 1, 2, 5, 100]),
)
def test_a_cache_fed_in_pieces_is_causal_attention(steps: list[int], groups: int, window: int) -> None:
    s, kv, d = sum(steps), 2, 8
    g = torch.Generator().manual_seed(0)
    q = torch.randn(1, kv * groups, s, d, generator=g, dtype=torch.float64)
    k, v = (torch.randn(1, kv, s, d, generator=g, dtype=torch.float64) for _ in range(2))
    mask = ops.window_mask(q, window or s)
    expected = scaled_dot_product_attention(q, k, v, mask, scale=0.3, enable_gqa=True)
    caches = [torch.zeros(1, 24, kv, d, dtype=torch.float64) for _ in range(2)]
    out, start = [], 0
    for n in steps:
        piece = slice(start, start + n)
        position = torch.arange(start, start + n)
        out.append(ops.cached_attention(q[:, :, piece], k[:, :, piece], v[:, :, piece], *caches, position, 0.3, window))
        start += n
    assert torch.allclose(torch.cat(out, 2), expected, atol=1e-12)
    assert torch.equal(caches[0][0, :s], k[0].transpose(0, 1))
    assert not caches[0][0, s:].any()


def test_a_full_cache_is_an_error_that_says_so() -> None:
    q = torch.zeros(1, 1, 3, 4)
    cache = torch.zeros(1, 8, 1, 4)
    with pytest.raises(DrawplateError) as error:
        ops.cached_attention(q, q, q, cache, cache.clone(), torch.arange(6, 9), 1.0)
    assert str(error.value) == (
        "positions 6 to 8 do not fit a cache of 8\n"
        "  where: drawplate.cached_attention\n"
        "  do:    use a shorter text, or compile with a larger context"
    )


def test_last_position_keeps_the_axis() -> None:
    x = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(ops.last_position(x), x[:, 2:3])


def test_hadamard_is_the_transform_of_every_block() -> None:
    x = torch.randn(2, 3, 24)
    assert torch.equal(ops.hadamard(x, 12), apply(x, 12))
    assert torch.allclose(ops.hadamard(ops.hadamard(x, 12), 12, True), x, atol=1e-5)


def test_hadamard_in_a_program_runs_and_traces() -> None:
    program = parse_program("""// drawplate text 1
program turn(%x: f32[b, 36]) where 2 <= b <= 9 {
  %0 : f32[b, 36] = drawplate.hadamard(%x, 36)
  %1 : f32[b, 36] = drawplate.hadamard(%0, 12)
  return %1
}
""")
    x = torch.randn(4, 36)
    expected = apply(apply(x, 36), 12)
    assert torch.equal(program.module()(x), expected)
    assert torch.equal(program.exported().module()(x), expected)


def test_the_stateful_operator_is_well_formed() -> None:
    q, k = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 3, 8)
    args = (q, k, k.clone(), torch.zeros(1, 6, 2, 8), torch.zeros(1, 6, 2, 8), torch.arange(2, 5), 0.5, 2)
    torch.library.opcheck(ops.cached_attention.default, args, test_utils=("test_schema", "test_faketensor"))
