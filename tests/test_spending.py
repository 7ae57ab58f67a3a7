"""A budget beside a recipe: who is given it, and what is promised about all files and about the time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from architectures import captured

from drawplate.api import compile as compile_model
from drawplate.api import plan
from drawplate.backends.xnnpack.target import TARGET
from drawplate.calibration import Calibration
from drawplate.capture import Assets, Captured
from drawplate.errors import RecipeError
from drawplate.passbase import Env, Pass
from drawplate.passes.add_kv_cache import AddKvCache
from drawplate.passes.allocate_bits import AllocateBits
from drawplate.passes.quantize_activations import QuantizeActivations
from drawplate.program import Program
from drawplate.recipe import Recipe
from drawplate.rehearsal import rehearse
from drawplate.spending import budgeted, refuse_slower


@dataclass(frozen=True)
class Thrifty(Pass):
    """A plugin's pass that spends bytes, and knows no device."""

    budget: str = "1MB"
    name: ClassVar = "thrifty"

    def run(self, program: Program, env: Env) -> Program:
        return program


def test_a_pass_is_given_the_options_that_it_has() -> None:
    recipe, limit = budgeted(Recipe((Thrifty(),)), "2MB", "oneplus-12")
    assert recipe.passes == (Thrifty("2MB"),)
    assert limit == 2_000_000


SPENT = (AllocateBits("0.0025ms/token", device="oneplus-12", context=16), QuantizeActivations())


def rehearsed(*passes: Pass) -> Program:
    """The program behind these passes, without contents."""
    found = rehearse(captured("llama"), passes, Env(target=TARGET)).program
    assert found is not None
    return found


def test_time_that_a_longer_cache_takes_is_refused() -> None:
    refuse_slower(SPENT, rehearsed(*SPENT, AddKvCache(16)))
    with pytest.raises(RecipeError) as error:
        refuse_slower(SPENT, rehearsed(*SPENT, AddKvCache(60)))
    assert re.sub(r"take [\d.]+ ms", "take N ms", str(error.value)) == (
        "a budget of 0.0025ms/token is not kept: decoding would take N ms per token\n"
        "  where: allocate-bits, device oneplus-12\n"
        "  why:   the cache has 60 positions, and 16 were counted\n"
        "  do:    give it context=60; --context sets it everywhere"
    )


def test_time_that_what_follows_takes_is_refused() -> None:
    with pytest.raises(RecipeError, match="is not kept") as error:
        refuse_slower(SPENT, captured("llama"))  # as if all were made floating point again
    assert error.value.why == "what the passes behind it add takes time too"


def test_plan_and_compile_refuse_it(tmp_path: Path) -> None:
    model = Captured(captured("llama"), Assets())
    recipe = Recipe((*SPENT, AddKvCache(60)), "xnnpack")
    with pytest.raises(RecipeError, match="60 positions, and 16 were counted"):
        plan(model, recipe)
    text = Calibration.of(torch.randint(3, 97, (4, 32)), "random")
    with pytest.raises(RecipeError, match="60 positions, and 16 were counted"):
        compile_model(model, recipe, out=tmp_path / "out", calibration=text, cache=False)
    assert not (tmp_path / "out").exists()
