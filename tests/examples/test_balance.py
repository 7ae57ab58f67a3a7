"""The pass plugin: the same function to the last bit, over weights whose ranges are even."""

from __future__ import annotations

import pytest
import torch

from drawplate.passbase import Env
from drawplate.plugins.manager import Session
from drawplate.program import Program
from drawplate.recipe import Recipe
from drawplate.runner import run_passes
from drawplate.schedule import schedule
from drawplate.testing import check_pass
from drawplate.text import parse_program

pytestmark = pytest.mark.usefixtures("installed")

GATED = """\
// drawplate text 1
program gated(%x: f32[b, 8]) where 1 <= b <= 64 {
  weight @gate.weight : f32[16, 8] = seed(1)
  weight @up.weight   : f32[16, 8] = seed(2)
  weight @up.bias     : f32[16] = seed(3)
  weight @down.weight : f32[8, 16] = seed(4)
  %0 : f32[b, 16] = aten.linear(%x, @gate.weight)
  %1 : f32[b, 16] = aten.silu(%0)
  %2 : f32[b, 16] = aten.linear(%x, @up.weight, @up.bias)
  %3 : f32[b, 16] = aten.mul.Tensor(%1, %2)
  %4 : f32[b, 8]  = aten.linear(%3, @down.weight)
  return %4
}
"""
READ_TWICE = GATED.replace("  return %4\n", "  %5 : f32[b, 16] = aten.linear(%x, @up.weight)\n  return (%4, %5)\n")


def balance_gates(**options: int) -> object:
    return Session().passes["balance-gates"](**options)


def unevenness(program: Program) -> float:
    """The largest ratio of the two sides' ranges over all channels, in powers of two."""
    up, down = program.weights["up.weight"], program.weights["down.weight"]
    return float((up.abs().amax(1) / down.abs().amax(0)).log2().abs().max())


def test_it_is_listed_with_its_owner(installed: object) -> None:
    assert str(Session().owners["pass", "balance-gates"]) == "balance (drawplate-balance 0.1.0)"
    assert not Session().problems


def test_it_keeps_every_promise_and_every_bit() -> None:
    program = parse_program(GATED)
    editor = program.edit()
    editor.weights["up.weight"] = program.weights["up.weight"] * torch.logspace(-2, 2, 16)[:, None]
    uneven = editor.finish()
    after = check_pass(balance_gates(), uneven).program
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(after.module()(x), uneven.module()(x))
    assert unevenness(uneven) > 5
    assert unevenness(after) <= 1  # as even as powers of two can make them


def test_the_limit_holds() -> None:
    editor = parse_program(GATED).edit()
    editor.weights["up.weight"] = editor.weights["up.weight"] * 1e9
    before = editor.finish()
    after = check_pass(balance_gates(limit=3), before).program
    assert torch.equal(after.weights["up.weight"] * 8, before.weights["up.weight"])


def test_what_is_read_elsewhere_is_refused_with_the_reason() -> None:
    env = Env()
    after = run_passes(parse_program(READ_TWICE), [balance_gates()], env).program
    assert [r.why for r in env.refusals] == ["up.weight is read in more than one place"]
    assert torch.equal(after.weights["down.weight"], parse_program(READ_TWICE).weights["down.weight"])


def test_the_schedule_puts_it_in_front_of_the_quantiser() -> None:
    session = Session()
    recipe = Recipe.parse("quantize-weights{bits=4,block=1x32},balance-gates", session)
    assert [p.name for p in schedule(recipe.passes, {"weights.float"}).order] == ["balance-gates", "quantize-weights"]
