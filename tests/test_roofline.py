"""The roofline: bytes and multiply-adds of small models by hand, and what changes them."""

from __future__ import annotations

import math

import pytest
import torch
from architectures import LAYERS, SIZES, WINDOW, captured

from drawplate.device import Device, Rates
from drawplate.passbase import Env
from drawplate.passes.add_kv_cache import AddKvCache
from drawplate.passes.last_position import LastPosition
from drawplate.passes.merge_linears import MergeLinears
from drawplate.passes.quantize_cache import QuantizeCache
from drawplate.passes.quantize_weights import QuantizeWeights
from drawplate.program import Program
from drawplate.roofline import bytes_moved, seconds, shares, works
from drawplate.text import parse_program

aten = torch.ops.aten
DEVICE = Device("test", "this test", Rates(1e9, 1e12), Rates(2e9, 1e12))
WIDTH, HEADS, KEY_HEADS = SIZES["hidden_size"], SIZES["num_attention_heads"], SIZES["num_key_value_heads"]
HEAD_WIDTH = WIDTH // HEADS


def linears(program: Program) -> int:
    """Bytes of what linears of the tiny models multiply with."""
    names = {str(n.args[1].target) for n in program.nodes(aten.linear.default)}  # type: ignore[union-attr]
    return sum(program.weights[name].nbytes for name in names)


def in_linears(program: Program, tokens: int) -> int:
    """Multiply-adds of a call."""
    return sum(w.multiply_adds for n, w in works(program, tokens=tokens) if n.target is aten.linear.default)


def test_decoding_reads_linears_whole_a_row_of_the_table_and_the_cache() -> None:
    program = captured("qwen3")  # not tied
    row = 4 * WIDTH
    position = 2 * LAYERS * 4 * KEY_HEADS * 16
    assert bytes_moved(program) == linears(program) + row + position
    assert bytes_moved(program, context=40) == linears(program) + row + 40 * position


def test_a_tied_table_is_read_whole_by_the_head() -> None:
    program = captured("llama")
    assert linears(program) < bytes_moved(program) < linears(program) + 4 * WIDTH + 1000


def test_a_cache_of_integers_is_read_with_its_scales_and_zero_points() -> None:
    plain = captured("qwen3")
    programs = [AddKvCache(48).run(p, Env()) for p in (plain, QuantizeCache().run(plain, Env()))]
    floats, integers = (bytes_moved(p) for p in programs)
    rows = 48 * LAYERS * 2 * KEY_HEADS
    width = programs[0].state[0].shape[-1]
    assert floats - integers == rows * (4 * width - (width + 4 + 1))


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_a_cache_moves_what_the_text_is_worth_at_that_length(name: str) -> None:
    program = captured(name)
    cached = AddKvCache(48).run(program, Env())
    for tokens, context in ((1, 1), (1, 40), (8, 8), (8, 40)):
        asked = {"tokens": tokens, "context": context}
        assert [w for _, w in works(program, **asked)] == [w for _, w in works(cached, **asked)]


def test_a_window_bounds_what_is_read() -> None:
    program = captured("mistral")
    assert bytes_moved(program, context=WINDOW) == bytes_moved(program, context=50)
    assert bytes_moved(program, context=WINDOW - 1) < bytes_moved(program, context=WINDOW)


def test_attention_multiplies_with_what_is_not_in_the_future() -> None:
    program, tokens = captured("llama"), 8
    (first, *_) = [
        w for n, w in works(program, tokens=tokens) if n.target is not None and "scaled_dot" in str(n.target)
    ]
    pairs = tokens * (tokens + 1) // 2
    assert first.multiply_adds == 2 * HEADS * HEAD_WIDTH * pairs


def test_a_prompt_multiplies_per_token_and_reads_weights_once() -> None:
    program = captured("qwen3")
    one, many = (
        sum(w.multiply_adds for n, w in works(program, tokens=n_) if "linear" in str(n.target)) for n_ in (1, 8)
    )
    assert many == 8 * one
    assert bytes_moved(program, tokens=8, context=8) == bytes_moved(program, context=8) + 7 * 4 * WIDTH
    last = LastPosition().run(program, Env())
    head = math.prod(program.weights["lm_head.weight"].shape)
    assert many - 7 * head == in_linears(last, 8)


def test_shares_are_named_by_weight_and_add_up() -> None:
    program = captured("llama")
    found = shares(program, DEVICE, context=16)
    assert sum(found.values()) == pytest.approx(seconds(program, DEVICE, context=16))
    assert sum(found.values()) == pytest.approx(bytes_moved(program, context=16) / 1e9)
    down = "model.layers.0.mlp.down_proj.weight"
    assert found[down] == pytest.approx(program.weights[down].nbytes / 1e9)
    assert sum("self_attn" in name and not name.endswith("weight") for name in found) == LAYERS


def test_stored_weights_are_read_by_the_integer_kernels() -> None:
    program = captured("llama")
    stored = QuantizeWeights("body", 4, (1, 16)).run(program, Env())
    name = "model.layers.1.mlp.up_proj.weight"
    assert shares(stored, DEVICE)[name] == pytest.approx(stored.weights[name].nbytes / 2e9)
    assert seconds(MergeLinears().run(stored, Env()), DEVICE) == pytest.approx(seconds(stored, DEVICE))


def test_a_slow_multiplier_bounds_a_prompt_and_not_a_token() -> None:
    slow = Device("slow", "this test", Rates(1e9, 1e9), Rates(1e9, 1e9))
    program = captured("qwen3")
    assert seconds(program, slow) == pytest.approx(seconds(program, DEVICE))
    assert seconds(program, slow, tokens=32) > 4 * seconds(program, slow)


def test_a_transform_costs_its_pieces() -> None:
    program = parse_program(
        "// drawplate text 1\nprogram turn(%x: f32[b, 1536]) where 1 <= b <= 4 {\n"
        "  %0 = drawplate.hadamard(%x, 1536)\n  return %0\n}"
    )
    ((_, work),) = works(program, tokens=3)
    assert (work.bytes, work.multiply_adds) == (0, 3 * 1536 * (48 + 32))
