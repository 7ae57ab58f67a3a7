"""Invariants hold of what is true, and catch every kind of lie."""

from dataclasses import replace
from types import MappingProxyType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from passkit import CAUSAL, MLP, TIED

from drawplate.encoding import Encoding, Grid, QTensor, encode, minmax_grid, mse_grid
from drawplate.invariants import ROUNDS, SAME_FUNCTION, SAME_INTEGERS, SIGNATURE, STORES
from drawplate.passbase import Env
from drawplate.passes.add_kv_cache import AddKvCache
from drawplate.passes.last_position import LastPosition
from drawplate.passes.pack_weights import PackWeights
from drawplate.passes.quantize_activations import QuantizeActivations
from drawplate.passes.quantize_weights import QuantizeWeights
from drawplate.probing import probe, probe_lengths, run, run_pieces
from drawplate.rounding import activation_error, stored_error
from drawplate.text import parse_program


def after(program, *passes):
    for pass_ in passes:
        program = pass_.run(program, Env())
    return program


def with_weight(program, name, weight):
    return replace(program, weights=MappingProxyType({**program.weights, name: weight}))


BEFORE = parse_program(MLP)
STORED = after(BEFORE, QuantizeWeights("all", scale="bf16"))
DECODER = parse_program(CAUSAL)


def test_nothing_changed_keeps_everything():
    for invariant in (SIGNATURE, SAME_FUNCTION, ROUNDS, SAME_INTEGERS):
        certificate = invariant.measure(STORED, STORED, 0)
        assert certificate.holds
        assert certificate.error == 0
        assert certificate.invariant == invariant.name


def test_signature_names_what_changed():
    certificate = SIGNATURE.measure(DECODER, after(DECODER, AddKvCache(8), LastPosition()), 0)
    assert not certificate.holds
    assert certificate.detail == (
        "inputs were input_ids['b', 's'], position_ids['b', 's'] and are tokens[1, 's'], input_pos['s']; "
        "lengths were b[], s[] and are s[]; outputs were f32[b, s, 12] and are f32[1, 1, 12]"
    )


@pytest.mark.parametrize("size", [1e-2, 1e-5])
def test_same_function_catches_a_small_change_of_one_weight(size):
    weight = BEFORE.weights["down"].double()
    weight[3] *= 1 + size
    certificate = SAME_FUNCTION.measure(BEFORE, with_weight(BEFORE, "down", weight), 0)
    assert not certificate.holds
    assert size / 1000 < certificate.error < size


def test_same_function_catches_a_cache_that_forgets():
    cached = after(DECODER, AddKvCache(8))
    editor = cached.edit()
    (node,) = editor.nodes(torch.ops.drawplate.cached_attention.default)
    node.args = (*node.args[:7], 2)  # a window that was not there
    forgetful = editor.finish()
    assert SAME_FUNCTION.measure(DECODER, cached, 0).holds
    certificate = SAME_FUNCTION.measure(DECODER, forgetful, 0)
    assert not certificate.holds
    assert certificate.error > 1e-3


def test_same_function_compares_the_last_position_where_there_is_one():
    last = after(DECODER, LastPosition())
    for before, then in ((DECODER, last), (DECODER, after(last, AddKvCache(8))), (last, after(last, AddKvCache(8)))):
        assert SAME_FUNCTION.measure(before, then, 0).holds
    editor = last.edit()
    (node,) = editor.nodes(torch.ops.drawplate.last_position.default)
    with editor.graph.inserting_before(node):
        first = editor.call(torch.ops.aten.slice.Tensor, node.args[0], 1, 0, 1, like=node)
    editor.replace(node, first)
    assert not SAME_FUNCTION.measure(DECODER, editor.finish(), 0).holds


def test_same_function_is_not_fooled_by_not_a_number():
    weight = BEFORE.weights["down"].clone()
    weight[0, 0] = torch.nan
    certificate = SAME_FUNCTION.measure(BEFORE, with_weight(BEFORE, "down", weight), 0)
    assert not certificate.holds
    assert certificate.error == torch.inf


def test_a_large_program_is_compared_in_float32_with_its_own_bound(monkeypatch):
    monkeypatch.setattr("drawplate.invariants.FLOAT64_LIMIT", 10)
    certificate = SAME_FUNCTION.measure(DECODER, after(DECODER, AddKvCache(8)), 0)
    assert certificate.holds
    assert certificate.bound == 1e-4
    assert certificate.detail == "float32, 8 positions"


def test_rounds_holds_for_weights_and_activations_with_the_largest_error_in_steps():
    encoded = after(STORED, QuantizeActivations())
    for before, then, what in ((BEFORE, STORED, "4 weights"), (STORED, encoded, "3 activations")):
        certificate = ROUNDS.measure(before, then, 0)
        assert certificate.holds
        assert 0.4 < certificate.error <= certificate.bound < 0.501
        assert certificate.detail.startswith(f"{what} rounded; error in steps")


def test_rounds_catches_a_code_that_is_one_off():
    q = STORED.weights["up"]
    codes = q.codes.clone()
    codes[7, 9] += 1 if codes[7, 9] < 0 else -1
    certificate = ROUNDS.measure(BEFORE, with_weight(STORED, "up", replace(q, codes=codes)), 0)
    assert not certificate.holds
    assert certificate.detail.startswith("up: off by ")


def test_rounds_catches_a_scale_that_clips_for_nothing():
    q = STORED.weights["up"]
    grid = Grid(q.grid.scale / 4, q.grid.zero_point)
    certificate = ROUNDS.measure(
        BEFORE, with_weight(STORED, "up", encode(BEFORE.weights["up"], q.encoding, grid=grid)), 0
    )
    assert not certificate.holds
    assert "with more squared error than the min-max range" in certificate.detail


def another_graph():
    """STORED with another activation function."""
    editor = STORED.edit()
    (node,) = editor.nodes(torch.ops.aten.silu.default)
    with editor.graph.inserting_before(node):
        editor.replace(node, editor.call(torch.ops.aten.gelu.default, node.args[0], like=node))
    return editor.finish()


def test_rounds_catches_a_changed_graph():
    assert not ROUNDS.measure(BEFORE, another_graph(), 0).holds
    assert not SAME_INTEGERS.measure(STORED, another_graph(), 0).holds


def test_rounds_catches_a_weight_that_was_exchanged():
    certificate = ROUNDS.measure(BEFORE, with_weight(BEFORE, "up", BEFORE.weights["gate"]), 0)
    assert not certificate.holds
    assert ROUNDS.measure(STORED, with_weight(STORED, "up", STORED.weights["gate"]), 0).detail.startswith(
        "up: it was changed, not rounded"
    )


@given(
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    scale=st.sampled_from(["f32", "bf16", "f16"]),
    grid=st.sampled_from([minmax_grid, mse_grid]),
    seed=st.integers(0, 1000),
)
@settings(deadline=None)
def test_the_quantiser_keeps_within_its_own_bound(bits, symmetric, scale, grid, seed):
    x = torch.randn(6, 64, generator=torch.Generator().manual_seed(seed))
    encoding = Encoding(bits, (1, 32), symmetric, scale=scale)
    error = stored_error("x", x, encode(x, encoding, grid=grid(x, encoding)))
    assert error.holds, str(error)


@given(st.integers(4, 8), st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 1000))
@settings(deadline=None)
def test_an_activation_keeps_within_its_bound(bits, dtype, seed):
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(seed)).to(dtype)
    encoding = Encoding(bits, (-1,), symmetric=False, dynamic=True)
    y = torch.ops.drawplate.encode(x, str(encoding))
    assert activation_error("x", x, y, encoding).holds
    assert not activation_error("x", x, y + 6 * x.abs().max() / 2**bits, encoding).holds


def test_same_integers_catches_a_nibble_and_a_scale():
    packed = after(STORED, PackWeights())
    assert SAME_INTEGERS.measure(STORED, packed, 0).detail == "4 stored weights, bit for bit"
    q = packed.weights["down"]
    codes = q.codes.clone()
    codes[0, 0] ^= 1
    scale = q.grid.scale.clone()
    scale[0, 0] *= 2
    for wrong in (
        replace(q, codes=codes),
        replace(q, grid=Grid(scale, q.grid.zero_point)),
        QTensor(q.codes, q.grid, replace(q.encoding, scale="f32"), q.shape, packed=True),
    ):
        certificate = SAME_INTEGERS.measure(STORED, with_weight(packed, "down", wrong), 0)
        assert not certificate.holds
        assert certificate.detail == "1 weights stand for other numbers: down"


def test_stores_allows_what_is_off_the_nearest_code_and_tells_by_how_much():
    weight = STORED.weights["down"]
    away = replace(weight, codes=(weight.codes + 1).clamp(-8, 7))
    found = STORES.measure(BEFORE, with_weight(STORED, "down", away), 0)
    assert found.holds
    assert found.error > STORES.measure(BEFORE, STORED, 0).error


@pytest.mark.parametrize("factor", [1e3, torch.nan])
def test_stores_catches_a_broken_weight(factor):
    weight = STORED.weights["down"]
    broken = replace(weight, grid=Grid(weight.grid.scale * factor, weight.grid.zero_point))
    assert not STORES.measure(BEFORE, with_weight(STORED, "down", broken), 0).holds


def test_stores_catches_a_changed_graph():
    assert not STORES.measure(BEFORE, another_graph(), 0).holds


def test_a_probe_knows_ids_positions_and_lengths():
    lengths = probe_lengths(DECODER, 7, 2)
    assert lengths == {"b": 2, "s": 7}
    ids, positions = probe(DECODER, lengths, 0)
    assert ids.shape == (2, 7)
    assert 0 <= int(ids.min()) <= int(ids.max()) < 12
    assert torch.equal(positions, torch.arange(7).repeat(2, 1))
    assert torch.equal(probe(DECODER, lengths, 0)[0], ids)
    assert probe_lengths(DECODER, 100, 9) == {"b": 4, "s": 16}


def test_a_run_is_the_module_s_and_pieces_share_state():
    inputs = probe(DECODER, {"b": 2, "s": 7}, 0)
    assert torch.equal(run(DECODER, inputs)[0], DECODER.module()(*inputs))
    assert run(DECODER, inputs, dtype=torch.float64)[0].dtype == torch.float64
    cached = after(DECODER, AddKvCache(8))
    ids = inputs[0][:1]
    parts = run_pieces(cached, [(ids[:, :4], torch.arange(4)), (ids[:, 4:], torch.arange(4, 7))])
    assert torch.allclose(torch.cat([p[0] for p in parts], 1), DECODER.module()(ids, torch.arange(7)[None]), atol=1e-5)


def test_a_tied_program_is_measured_too():
    tied = parse_program(TIED)
    assert ROUNDS.measure(tied, after(tied, QuantizeWeights("all", 8, (1, -1))), 0).holds
