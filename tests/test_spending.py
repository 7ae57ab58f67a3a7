"""A budget beside a recipe: who is given it, and what is promised about all files and about the time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from drawplate.passbase import Env, Pass
from drawplate.program import Program
from drawplate.recipe import Recipe
from drawplate.spending import budgeted


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
