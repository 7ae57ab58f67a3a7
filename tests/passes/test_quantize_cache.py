"""quantize-cache: what attention reads is rounded in the graph, and a cache of integers then computes the same."""

import pytest
import torch
from architectures import captured, decoder_inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from passkit import CAUSAL, WINDOWED

from drawplate.backendbase import state_rows
from drawplate.encoding import fake_quantize_dynamic, per_head
from drawplate.errors import DrawplateError
from drawplate.passbase import Env
from drawplate.passes.add_kv_cache import AddKvCache
from drawplate.passes.quantize_cache import QuantizeCache
from drawplate.passes.rotate import Rotate
from drawplate.runner import run_passes
from drawplate.runtime import ProgramRunner
from drawplate.schedule import schedule
from drawplate.testing import check_pass
from drawplate.text import parse_program

ENCODE = torch.ops.drawplate.encode.default
SDPA = torch.ops.aten.scaled_dot_product_attention.default
ROUNDED = {text: QuantizeCache().run(parse_program(text), Env()) for text in (CAUSAL, WINDOWED)}
CACHED = {text: AddKvCache(16).run(program, Env()) for text, program in ROUNDED.items()}


@pytest.mark.parametrize("text", [CAUSAL, WINDOWED], ids=["causal", "window"])
def test_it_rounds_within_half_a_step_and_nothing_else(text):
    outcome = check_pass(QuantizeCache(), text)
    assert [c.invariant for c in outcome.certificates] == ["SIGNATURE", "ROUNDS"]
    assert outcome.certificates[1].detail.startswith("3 activations rounded")
    assert 0.4 < outcome.certificates[1].error <= 0.5001
    assert "attention.plain" not in outcome.program.facts


def test_queries_may_stay_as_they_are():
    program = check_pass(QuantizeCache(bits=4, queries=False), CAUSAL).program
    (attention,) = program.nodes(SDPA)
    assert [x.target is ENCODE for x in attention.args[:3]] == [False, True, True]
    assert attention.args[1].args[1] == "i4 block -1 asym scale f32 dynamic fbgemm"


@pytest.mark.parametrize("text", [CAUSAL, WINDOWED], ids=["causal", "window"])
def test_a_cache_of_integers_is_the_same_function(text):
    outcome = check_pass(AddKvCache(12), ROUNDED[text])
    assert [c.invariant for c in outcome.certificates] == ["SAME_FUNCTION"]
    assert outcome.certificates[0].error < 1e-14
    rows = {r.name: (r.encoding, r.bytes) for r in state_rows(outcome.program)}
    per_part = {"": ("i8", 12 * 2 * 8), "_scale": ("f32", 12 * 2 * 4), "_zero_point": ("i8", 12 * 2)}
    assert rows == {f"cache.0.{part}{kind}": row for part in ("key", "value") for kind, row in per_part.items()}


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.sampled_from([CAUSAL, WINDOWED]))
@settings(max_examples=20, deadline=None)
def test_however_it_is_fed_it_says_the_same(pieces, text):
    n = sum(pieces)
    ids = torch.randint(0, 12, (n,), generator=torch.Generator().manual_seed(n))
    whole = ProgramRunner(ROUNDED[text]).step(ids)
    runner = ProgramRunner(CACHED[text])
    parts = torch.cat([runner.step(part) for part in ids.split(pieces)])
    assert torch.allclose(parts, whole, atol=1e-5)


def test_the_cache_holds_the_reference_s_integers():
    program = captured("llama")
    program = AddKvCache(16).run(QuantizeCache().run(program, Env()), Env())
    ids, positions = decoder_inputs(1, 9)
    module, keys = program.module(), []
    cached = next(program.nodes(torch.ops.drawplate.cached_attention.encoded))
    interpreter = torch.fx.Interpreter(module)
    run = interpreter.run_node

    def watch(node):
        value = run(node)
        keys.extend([value] if node.name == cached.args[1].name else [])
        return value

    interpreter.run_node = watch
    interpreter.run(ids, positions[0])
    state = {s.name: module.get_buffer(s.name)[:, :9] for s in program.state if s.name.startswith("cache.0.key")}
    read = (state["cache.0.key"].float() - state["cache.0.key_zero_point"]) * state["cache.0.key_scale"]
    assert torch.equal(read, fake_quantize_dynamic(keys[0], per_head()).transpose(1, 2))


def test_it_is_put_in_front_of_the_cache():
    made = schedule([AddKvCache(16), QuantizeCache()], {"weights.float", "attention.plain"})
    assert [p.name for p in made.order] == ["quantize-cache", "add-kv-cache"]


def test_what_is_in_a_cache_already_is_not_rounded():
    with pytest.raises(DrawplateError) as error:
        run_passes(parse_program(CAUSAL), [AddKvCache(16), QuantizeCache()], Env())
    assert error.value.what == "pass 'quantize-cache' requires 'attention.plain', which does not hold of its input"
    assert error.value.why == "attn reads a cache"


def test_rotations_come_first():
    """Behind the rounding a turn would leave the cache in floating point, unsaid."""
    env = Env()
    after = Rotate(r1=False, r2=False, r3=True).run(ROUNDED[CAUSAL], env)
    assert not any(True for _ in after.nodes(torch.ops.drawplate.hadamard.default))
    (refusal,) = (r for r in env.refusals if r.op == "r3")
    assert (refusal.why, refusal.fix) == ("its keys are rounded already", "put rotate in front of quantize-cache")


@pytest.mark.parametrize("bits", [1, 9])
def test_codes_are_at_most_a_byte(bits):
    with pytest.raises(ValueError, match=f"codes of {bits} bits: a cache holds 2 to 8"):
        QuantizeCache(bits)
