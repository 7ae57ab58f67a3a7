"""The order of passes: what is needed comes before, what breaks comes after, and every edge has a reason."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drawplate.errors import RecipeError
from drawplate.passbase import Env, Fact, Pass
from drawplate.program import Program
from drawplate.schedule import schedule


def make(name_: str, requires: str = "", provides: str = "", preserves: str = "x y z") -> Pass:
    """A pass with these facts, by one-letter names."""

    def facts(names: str) -> frozenset[Fact]:
        return frozenset(Fact(n, lambda program: []) for n in names.split())

    @dataclass(frozen=True)
    class Made(Pass):
        name: ClassVar[str] = name_

        def run(self, program: Program, env: Env) -> Program:
            return program

    Made.requires, Made.provides, Made.preserves = facts(requires), facts(provides), facts(preserves)
    return Made()


def names(passes: Iterable[Pass]) -> str:
    return " ".join(p.name for p in passes)


def test_the_written_order_is_kept_where_it_works() -> None:
    made = schedule([make("b"), make("a", provides="x"), make("c", requires="x")])
    assert names(made.order) == "b a c"
    assert made.explain() == "1. b\n2. a\n3. c\n     a provides 'x'"


def test_what_is_required_comes_first() -> None:
    made = schedule([make("user", requires="x"), make("other"), make("maker", provides="x")])
    assert names(made.order) == "other maker user"
    assert made.explain().splitlines()[-2:] == [
        "3. user   (written as number 1)",
        "     maker provides 'x'",
    ]


def test_what_breaks_a_fact_comes_after_its_readers() -> None:
    made = schedule([make("breaker", preserves="y"), make("user", requires="x")], facts=["x"])
    assert names(made.order) == "user breaker"
    assert "user must run before 'x' is broken by breaker" in made.explain()


def test_what_breaks_a_fact_may_come_before_it_is_provided() -> None:
    breaker, maker, user = make("breaker", preserves=""), make("maker", provides="x"), make("user", requires="x")
    assert names(schedule([breaker, maker, user]).order) == "breaker maker user"
    assert names(schedule([maker, breaker, user]).order) == "maker user breaker"
    assert "breaker breaks 'x', and maker provides it again" in schedule([breaker, maker, user]).explain()


def test_a_preference_that_closes_a_loop_is_given_up() -> None:
    """`breaker` would rather run before `maker`, where it is written, but needs what only `user` provides."""
    breaker = make("breaker", requires="z", preserves="y z")
    made = schedule([breaker, make("maker", provides="x"), make("user", requires="x", provides="z")])
    assert names(made.order) == "maker user breaker"


def test_two_that_break_what_both_need_are_told_as_a_loop() -> None:
    with pytest.raises(RecipeError) as caught:
        schedule([make("one", "x", preserves=""), make("two", "x", preserves="")], facts=["x"])
    assert str(caught.value) == (
        "the passes cannot be ordered: their needs go in a circle\n"
        "  where: one -> two -> one\n"
        "  why:   one must run before 'x' is broken by two; two must run before 'x' is broken by one\n"
        "  do:    leave one of them out, or put in a pass that provides the broken fact again"
    )


def test_a_loop_of_providers_is_told_with_every_step() -> None:
    with pytest.raises(RecipeError, match="a provides 'x'; b provides 'y'"):
        schedule([make("a", requires="y", provides="x"), make("b", requires="x", provides="y")])


def test_two_providers_serve_two_readers_that_break() -> None:
    fold = make("fold", provides="x")
    pack = make("pack", requires="x", preserves="")
    assert names(schedule([fold, pack, fold, pack]).order) == "fold pack fold pack"


def test_everything_that_is_missing_is_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        schedule([make("a", requires="x y"), make("b", requires="z")], facts=["y"])
    assert caught.value.why == "a requires 'x', which nothing provides; b requires 'z', which nothing provides"


def test_a_fact_of_the_incoming_program_counts() -> None:
    assert names(schedule([make("a", requires="x")], facts=["x"]).order) == "a"


def test_a_pinned_order_that_works_is_kept() -> None:
    assert names(schedule([make("b", provides="x"), make("a", requires="x")], pinned=True).order) == "b a"


def test_a_pinned_order_that_does_not_work_is_an_error() -> None:
    with pytest.raises(RecipeError) as caught:
        schedule([make("user", requires="x"), make("maker", provides="x")], pinned=True)
    assert str(caught.value) == (
        "the recipe pins an order that does not work\n"
        "  where: user,maker\n"
        "  why:   maker provides 'x'\n"
        "  do:    write maker,user, or do not pin"
    )


def test_a_pass_that_stands_twice_is_told_apart_by_its_number() -> None:
    fold = make("fold", provides="x")
    made = schedule([fold, make("pack", requires="x", preserves=""), fold])
    assert "fold (number 1) provides 'x'" in made.explain()


def test_no_passes_is_a_schedule() -> None:
    assert schedule([]).order == ()
    assert schedule([]).explain() == ""


def test_a_hopeless_tangle_ends() -> None:
    """Many free choices and one contradiction: the search must not try all combinations."""
    tangle = [make(f"p{i}", requires="y", provides="y", preserves="x") for i in range(12)]
    rivals = [make("one", "x", preserves="y"), make("two", "x", preserves="y")]
    with pytest.raises(RecipeError, match="go in a circle"):
        schedule([*tangle, *rivals], facts=["x", "y"])


@st.composite
def tangles(draw: st.DrawFn) -> tuple[list[Pass], frozenset[str]]:
    subset = st.sets(st.sampled_from("xyz")).map(" ".join)
    passes = [make(f"p{i}", draw(subset), draw(subset), draw(subset)) for i in range(draw(st.integers(0, 5)))]
    return passes, frozenset(draw(st.sets(st.sampled_from("xyz"))))


def works(order: Iterable[Pass], facts: frozenset[str]) -> bool:
    """Walk through the passes: does each find what it requires?"""
    for p in order:
        if not {f.name for f in p.requires} <= facts:
            return False
        facts = (facts & {f.name for f in p.preserves}) | {f.name for f in p.provides}
    return True


@settings(deadline=None)
@given(tangles())
def test_every_order_that_is_given_works_and_one_is_given_if_there_is_any(
    tangle: tuple[list[Pass], frozenset[str]],
) -> None:
    passes, facts = tangle
    try:
        order = schedule(passes, facts).order
    except RecipeError:
        assert not any(works(p, facts) for p in permutations(passes))
    else:
        assert works(order, facts)
        if works(passes, facts):
            assert order == tuple(passes)
