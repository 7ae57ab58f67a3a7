"""A failed comparison names the first value that differs."""

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar

import pytest
import torch
from architectures import captured, decoder_inputs
from passkit import CAUSAL, MLP

from drawplate.difference import first_difference
from drawplate.errors import PassError
from drawplate.invariants import AS_DEPLOYED, SAME_FUNCTION
from drawplate.passbase import Env, Pass
from drawplate.passes.add_kv_cache import AddKvCache
from drawplate.passes.cast import Cast
from drawplate.passes.fold_norms import FoldNorms
from drawplate.passes.rotate import Rotate
from drawplate.program import Program
from drawplate.runner import run_passes
from drawplate.text import parse_program


def spoiled(program: Program, name: str) -> Program:
    """One element of a weight is another."""
    weight = program.weights[name].clone()
    weight[(0,) * weight.dim()] += 0.5
    return replace(program, weights=MappingProxyType({**program.weights, name: weight}))


def turned(program: Program) -> Program:
    for pass_ in (FoldNorms("split"), Rotate(kind="random", r3=True, r4=True, maps=99)):
        program = pass_.run(program, Env())
    return program


@dataclass(frozen=True)
class Wrongly(Pass):
    """fold-norms and rotate, and then one weight is spoiled."""

    weight: str = ""
    name: ClassVar = "turn-wrongly"
    keeps: ClassVar = (SAME_FUNCTION,)

    def run(self, program: Program, env: Env) -> Program:
        return spoiled(turned(program), self.weight)


def test_the_site_of_a_spoiled_linear():
    program = parse_program(MLP)
    certificate = SAME_FUNCTION.measure(program, spoiled(program, "up"), 0)
    assert "; the first value that differs is up (aten.linear), by " in certificate.detail


@pytest.mark.parametrize("model", ["qwen2", "gpt2"])
def test_turning_folding_and_centring_are_no_differences(model):
    program = captured(model)
    inputs = decoder_inputs(2, 7)
    assert first_difference(program, turned(program), lambda _: inputs, torch.float64, 1e-11) == ""


@pytest.mark.parametrize(
    ("model", "weight", "site"),
    [
        ("qwen2", "model.layers.1.self_attn.v_proj.bias", "model.layers.1.self_attn.v_proj"),
        ("gpt2", "lm_head.weight", "lm_head"),
        ("gpt2", "transformer.h.0.mlp.c_proj.weight_t", "transformer.h.0.mlp.c_proj"),
    ],
)
def test_a_wrongly_turned_weight_is_named_among_all_that_was_turned(model, weight, site):
    with pytest.raises(PassError) as error:
        run_passes(captured(model), [Wrongly(weight)], Env())
    assert error.value.what == f"pass 'turn-wrongly{{weight={weight}}}' does not keep SAME_FUNCTION"
    assert f"; the first value that differs is {site} (aten.linear) [" in error.value.why


def test_a_cached_program_is_looked_at_too():
    program = parse_program(CAUSAL)
    cached = AddKvCache(16).run(program, Env())
    for before in (program, cached):
        certificate = SAME_FUNCTION.measure(before, spoiled(cached, "v"), 0)
        assert "; the first value that differs is attn.v (aten.linear), by " in certificate.detail


def test_rounding_to_the_dtype_of_the_weights_is_no_difference():
    program = Cast().run(captured("llama"), Env())
    outcome = run_passes(program, [FoldNorms(), Rotate()], Env())
    assert [c.bound for c in outcome.certificates if c.invariant == AS_DEPLOYED.name] == [5e-2, 5e-2]
