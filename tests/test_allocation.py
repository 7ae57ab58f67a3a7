"""allocate: the best choice where that can be known, near it elsewhere, and never beyond the budget."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drawplate import allocation
from drawplate.allocation import NANOSECONDS, Item, Option, allocate, frontier
from drawplate.errors import DrawplateError

OPTIONS = st.lists(
    st.builds(Option, st.integers(1, 40), st.floats(0, 10, allow_nan=False)), min_size=1, max_size=4
).map(tuple)


def many(count: int, seed: int = 0) -> list[Item]:
    """Items as weights are: a bit more costs bytes and saves three quarters of the damage."""
    draw = random.Random(seed)
    items = []
    for i in range(count):
        size, harm = draw.randint(50, 500), draw.random() * 10 ** draw.randint(-3, 1)
        items.append(Item(str(i), tuple(Option(size * b, harm * 4.0**-b, b) for b in (2, 3, 4, 5, 6, 8))))
    return items


@settings(max_examples=60, deadline=None)
@given(st.lists(OPTIONS, min_size=1, max_size=4), st.integers(0, 120))
def test_it_is_the_best_of_all_choices(options: list[tuple[Option, ...]], budget: int) -> None:
    items = [Item(str(i), o) for i, o in enumerate(options)]
    fitting = [c for c in itertools.product(*options) if sum(o.bytes for o in c) <= budget]
    if not fitting:
        with pytest.raises(DrawplateError, match="cannot be met"):
            allocate(items, budget)
        return
    found = allocate(items, budget)
    assert found.exact
    assert found.bytes <= budget
    assert found.damage == pytest.approx(min(sum(o.damage for o in c) for c in fitting))


@settings(max_examples=60, deadline=None)
@given(st.lists(OPTIONS, min_size=1, max_size=4))
def test_the_frontier_is_the_best_at_each_of_its_prices(options: list[tuple[Option, ...]]) -> None:
    items = [Item(str(i), o) for i, o in enumerate(options)]
    found = frontier(items)
    assert [damage for _, damage in found] == pytest.approx([allocate(items, size).damage for size, _ in found])
    assert found[0][0] == sum(min(o.bytes for o in item) for item in options)
    assert found[-1][1] == pytest.approx(sum(min(o.damage for o in item) for item in options))


def test_the_relaxation_is_near_the_best_and_spends_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    items = many(60)
    budget = sum(i.options[2].bytes for i in items)
    best = allocate(items, budget)
    monkeypatch.setattr(allocation, "FRONT", 1)
    near = allocate(items, budget)
    assert best.exact
    assert not near.exact
    assert near.bytes <= budget
    assert near.bytes > 0.99 * budget
    assert near.damage <= 1.02 * best.damage


@settings(max_examples=40, deadline=None)
@given(st.lists(OPTIONS, min_size=1, max_size=4), st.integers(0, 120), st.booleans())
def test_time_is_allocated_as_bytes_are(options: list[tuple[Option, ...]], budget: int, relaxed: bool) -> None:
    items = [Item(str(i), o) for i, o in enumerate(options)]
    timed = [Item(i.name, tuple(Option(7, o.damage, None, o.bytes) for o in i.options)) for i in items]
    if sum(min(o.bytes for o in i.options) for i in items) > budget:
        with pytest.raises(DrawplateError, match=r"cannot be met\n.* ns\n"):
            allocate(timed, budget, NANOSECONDS)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(allocation, "FRONT", 0 if relaxed else allocation.FRONT)
        by_bytes, by_time = allocate(items, budget), allocate(timed, budget, NANOSECONDS)
    assert [o.bytes for o in by_bytes.chosen.values()] == [o.nanoseconds for o in by_time.chosen.values()]
    assert by_bytes.damage == by_time.damage


def test_of_equal_times_the_smaller_is_taken() -> None:
    two = (Option(9, 1.0, "large", 5), Option(3, 1.0, "small", 5))
    assert allocate([Item("a", two)], 5, NANOSECONDS).chosen["a"].what == "small"


def test_damage_and_bytes_never_rise_together() -> None:
    items, budgets = many(40), range(25_000, 60_000, 5_000)
    found = [allocate(items, budget) for budget in budgets]
    assert [f.damage for f in found] == sorted((f.damage for f in found), reverse=True)


def test_a_budget_that_is_too_small_names_the_smallest() -> None:
    with pytest.raises(DrawplateError) as error:
        allocate([Item("a", (Option(8, 1.0), Option(4, 2.0))), Item("b", (Option(6, 1.0),))], 9)
    assert str(error.value) == (
        "a budget of 9 bytes cannot be met\n"
        "  why:   the smallest that the menu allows is 10 bytes\n"
        "  do:    give at least 10 bytes for what is allocated, or a menu with smaller entries"
    )
