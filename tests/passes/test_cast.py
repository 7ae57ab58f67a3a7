"""cast: everything in another dtype, but for what positions alone decide."""

import pytest
import torch
from architectures import captured, convnet, decoder_inputs
from passkit import CAUSAL, MLP

from drawplate.canonical import canonicalise
from drawplate.capture import capture
from drawplate.passbase import Env
from drawplate.passes.add_kv_cache import AddKvCache
from drawplate.passes.cast import Cast
from drawplate.runner import run_passes
from drawplate.testing import check_pass
from drawplate.text import parse_program


@pytest.mark.parametrize(("dtype", "kind"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_weights_are_rounded_to_nearest_and_the_signature_stays(dtype, kind):
    before, after = parse_program(MLP), check_pass(Cast(dtype), MLP).program
    for name, weight in after.weights.items():
        assert torch.equal(weight, before.weights[name].to(kind))
    assert after.module()(torch.arange(4)[None]).dtype == torch.float32


def test_the_same_dtype_changes_nothing():
    assert str(check_pass(Cast("f32"), MLP).program) == str(parse_program(MLP))


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "phi3"])
def test_decoders_compute_in_bf16_and_their_angles_do_not(name):
    program = captured(name)
    outcome = run_passes(program, [Cast()], Env())
    kinds = {n: w.dtype for n, w in outcome.program.weights.items() if w.is_floating_point()}
    assert {k for n, k in kinds.items() if "inv_freq" not in n} == {torch.bfloat16}
    assert {k for n, k in kinds.items() if "inv_freq" in n} <= {torch.float32}
    inputs = decoder_inputs(2, 7)
    a, b = program.module()(*inputs), outcome.program.module()(*inputs)
    assert float((a - b).norm() / a.norm()) < 0.05


def test_a_network_on_floats_keeps_its_inputs():
    network, inputs, dynamic = convnet()
    program = canonicalise(capture(network, example_inputs=inputs, dynamic=dynamic).program)
    outcome = check_pass(Cast(), program)
    a, b = network(*inputs.values()), outcome.program.module()(*inputs.values())
    assert b.dtype == torch.float32
    assert float((a - b).detach().norm() / a.detach().norm()) < 0.05


@pytest.mark.parametrize("order", [[Cast(), AddKvCache(8)], [AddKvCache(8), Cast()]])
def test_the_cache_is_cast_too(order):
    program = run_passes(parse_program(CAUSAL), order, Env()).program
    assert {s.dtype for s in program.state} == {torch.bfloat16}
