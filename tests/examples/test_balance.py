"""The pass plugin: the same function to the last bit, and scales that follow what is measured on a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from drawplate.calibration import Calibration
from drawplate.canonical import canonicalise
from drawplate.capture import capture
from drawplate.errors import RecipeError
from drawplate.passbase import Env
from drawplate.plugins.manager import Session
from drawplate.program import Program
from drawplate.recipe import Recipe
from drawplate.rehearsal import rehearse
from drawplate.runner import run_passes
from drawplate.schedule import schedule
from drawplate.testing import check_pass
from drawplate.text import parse_program
from tests.examples.conftest import SIZES, Save

pytestmark = pytest.mark.usefixtures("installed")

GATED = """\
// drawplate text 1
program gated(%ids: i64[b, s], %positions: i64[b, s]) where 1 <= b <= 8, 1 <= s <= 64 {
  weight @table       : f32[300, 8] = seed(0)
  weight @gate.weight : f32[16, 8] = seed(1)
  weight @up.weight   : f32[16, 8] = seed(2)
  weight @up.bias     : f32[16] = seed(3)
  weight @down.weight : f32[8, 16] = seed(4)
  %0 : f32[b, s, 8]  = aten.embedding(@table, %ids)
  %1 : f32[b, s, 16] = aten.linear(%0, @gate.weight)
  %2 : f32[b, s, 16] = aten.silu(%1)
  %3 : f32[b, s, 16] = aten.linear(%0, @up.weight, @up.bias)
  %4 : f32[b, s, 16] = aten.mul.Tensor(%2, %3)
  %5 : f32[b, s, 8]  = aten.linear(%4, @down.weight)
  return %5
}
"""
WINDOWS = torch.randint(0, 300, (3, 20), generator=torch.Generator().manual_seed(0))


def balance_gates(**options: float) -> Any:
    return Session().passes["balance-gates"](**options)


def text() -> Env:
    return Env(calibration=Calibration.of(WINDOWS, "random"))


def uneven() -> Program:
    """Rows of `up` between 1/100 and 100 times as long."""
    editor = parse_program(GATED).edit()
    spread = torch.logspace(-2, 2, 16)
    editor.weights["up.weight"] = editor.weights["up.weight"] * spread[:, None]
    editor.weights["up.bias"] = editor.weights["up.bias"] * spread
    return editor.finish()


def test_it_is_listed_with_its_owner() -> None:
    assert str(Session().owners["pass", "balance-gates"]) == "balance (drawplate-balance 0.1.0)"
    assert not Session().problems


def test_it_keeps_every_promise_and_every_bit() -> None:
    before = uneven()
    after = check_pass(balance_gates(strength=1), before, env=text()).program
    positions = torch.arange(20).expand(3, 20)
    assert torch.equal(after.module()(WINDOWS, positions), before.module()(WINDOWS, positions))
    s = after.weights["down.weight"][0] / before.weights["down.weight"][0]
    assert s.max() / s.min() >= 1024
    assert torch.equal(s.log2(), s.log2().round())
    assert torch.equal(after.weights["up.weight"] * s[:, None], before.weights["up.weight"])
    assert torch.equal(after.weights["up.bias"] * s, before.weights["up.bias"])


def test_the_limit_holds() -> None:
    after = check_pass(balance_gates(strength=1, limit=3), uneven(), env=text()).program
    ratio = after.weights["up.weight"] / uneven().weights["up.weight"]
    assert (ratio.min(), ratio.max()) == (1 / 8, 8)


def test_scales_follow_what_the_model_itself_carries(save: Save) -> None:
    """Root mean squares computed here by hooks on the model, and the certificate of a real decoder: no bit moved."""
    folder = save(transformers.LlamaConfig(**SIZES))
    program = canonicalise(capture(folder).program)
    outcome = run_passes(program, [balance_gates(strength=2)], text())
    (same,) = (c for c in outcome.certificates if c.invariant == "SAME_FUNCTION")
    assert same.holds
    assert same.error == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    seen: list[torch.Tensor] = []
    model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda module, x: seen.append(x[0]))
    with torch.no_grad():
        model(WINDOWS)
    carried = seen[0].double().square().mean((0, 1))  # to the power of 2
    wanted = carried / carried.log().mean().exp()
    name = "model.layers.1.mlp.down_proj.weight"
    s = (outcome.program.weights[name] / program.weights[name])[0].double()
    assert s.max() > 1
    assert ((s / wanted).log2().abs() <= 0.5 + 1e-4).all()  # as near as powers of two come


def test_without_a_text_it_says_so() -> None:
    env = Env()
    run_passes(parse_program(GATED), [balance_gates()], env)
    assert list(map(str, env.refusals)) == [
        "gated: without a calibration text nothing says what its channels carry; give a text"
    ]


def test_what_is_read_elsewhere_is_refused_with_the_reason() -> None:
    twice = GATED.replace("  return %5\n", "  %6 : f32[b, s, 16] = aten.linear(%0, @up.weight)\n  return (%5, %6)\n")
    env = text()
    after = run_passes(parse_program(twice), [balance_gates()], env).program
    assert [r.why for r in env.refusals] == ["up.weight is read in more than one place"]
    assert torch.equal(after.weights["down.weight"], parse_program(twice).weights["down.weight"])


def test_a_rehearsal_goes_through() -> None:
    assert rehearse(parse_program(GATED), [balance_gates()], text()).program is not None


def test_the_schedule_puts_it_in_front_of_the_quantiser() -> None:
    recipe = Recipe.parse("quantize-weights{bits=4,block=1x32},balance-gates", Session())
    assert [p.name for p in schedule(recipe.passes, {"weights.float"}).order] == ["balance-gates", "quantize-weights"]


def test_options_that_cannot_be() -> None:
    with pytest.raises(RecipeError, match="'balance-gates' refuses its options"):
        Recipe.parse("balance-gates{strength=-1}", Session())


def test_the_distribution_says_what_it_is(installed: Path) -> None:
    assert (installed / "drawplate_balance-0.1.0.dist-info" / "entry_points.txt").read_text() == (
        "[drawplate]\nbalance = drawplate_balance.plugin\n"
    )
