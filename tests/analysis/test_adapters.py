"""Adapters are found by what the graph computes, rounded or merged or not."""

from __future__ import annotations

import pytest
from architectures import captured
from passkit import MLP

from drawplate.analysis.adapters import adapters
from drawplate.analysis.sites import sites
from drawplate.passbase import Env
from drawplate.passes.add_lora import AddLora
from drawplate.passes.quantize_activations import QuantizeActivations
from drawplate.passes.quantize_weights import QuantizeWeights
from drawplate.runner import run_passes
from drawplate.text import parse_program


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_beside_every_linear_that_has_one(name: str) -> None:
    program = captured(name)
    after = run_passes(program, [AddLora(2, 0.5)], Env()).program
    found = adapters(after)
    assert {a.base for a in found} == {s.name for s in sites(program) if s.role == "linear"}
    assert {(a.rank, a.scale) for a in found} == {(2, 0.5)}
    assert all(a.down.removesuffix("A.weight") == a.up.removesuffix("B.weight") for a in found)


def test_beside_what_is_stored_and_reads_rounded_values() -> None:
    passes = [QuantizeWeights("body", 4, (1, 16)), QuantizeActivations(), AddLora(2)]
    found = adapters(run_passes(captured("llama"), passes, Env()).program)
    assert len(found) == 14


def test_a_sum_of_two_linears_is_no_adapter() -> None:
    assert adapters(parse_program(MLP)) == ()
    assert adapters(captured("llama")) == ()
