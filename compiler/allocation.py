"""Choosing one option for each item so that the damage is least and the cost, bytes or time, stays within a budget.

The multiple-choice knapsack. Exact while the Pareto front of partial choices stays small, else Lagrangian relaxation
(Everett 1963; Shoham and Gersho 1988, IEEE TASSP 36(9), eq. 3), and then the rest of the budget is spent where it helps
most.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any

from drawplate.errors import DrawplateError, PassError

FRONT = 4096  # partial choices that are kept while the answer is exact


@dataclass(frozen=True)
class Option:
    """One way to store an item. bytes: what it takes; damage: what it costs in quality, in the cost's own unit;
    nanoseconds: what it takes of each token's time, where a device was named."""

    bytes: int
    damage: float
    what: Any = None
    nanoseconds: int = 0


Price = Callable[[Option], int]
"""What a budget counts of an option."""
BYTES: Price = attrgetter("bytes")
NANOSECONDS: Price = attrgetter("nanoseconds")


@dataclass(frozen=True)
class Item:
    """Something that is stored in one of these ways. members: the weights that it stands for."""

    name: str
    options: tuple[Option, ...]
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class Allocation:
    """The option of each item, by name. exact: no other choice within the budget has less damage."""

    chosen: dict[str, Option]
    exact: bool

    @property
    def bytes(self) -> int:
        """Of all that was chosen."""
        return sum(o.bytes for o in self.chosen.values())

    @property
    def damage(self) -> float:
        """Of all that was chosen."""
        return sum(o.damage for o in self.chosen.values())


def allocate(items: Sequence[Item], budget: int, price: Price = BYTES) -> Allocation:
    """The choice of least damage whose prices add up to the budget at most. Raises DrawplateError if the cheapest is
    beyond it.

    >>> two = (Option(4, 1.0), Option(8, 0.1))
    >>> allocate([Item("a", two), Item("b", (Option(4, 5.0), Option(8, 0.1)))], 12).chosen["b"].bytes
    8
    """
    items = [replace(i, options=undominated(i.options, price)) for i in items]
    smallest, unit = sum(price(i.options[0]) for i in items), "bytes" if price is BYTES else "ns"
    if smallest > budget:
        raise DrawplateError(
            f"a budget of {budget:,} {unit} cannot be met",
            why=f"the smallest that the menu allows is {smallest:,} {unit}",
            fix=f"give at least {smallest:,} {unit} for what is allocated, or a menu with smaller entries",
        )
    exact = _exact(items, budget, price)
    return Allocation(exact, True) if exact is not None else Allocation(_relaxed(items, budget, price), False)


def frontier(items: Sequence[Item], price: Price = BYTES) -> list[tuple[int, float]]:
    """(price, damage) of the choices on the lower convex hull of all, the cheapest first. From each to the next one
    item takes its next better option, in the order of what a unit of the price saves; so each has the least damage of
    all that cost no more (Shoham and Gersho 1988, sec. III).

    >>> frontier([Item("a", (Option(4, 1.0), Option(8, 0.5))), Item("b", (Option(4, 5.0), Option(8, 0.5)))])
    [(8, 6.0), (12, 1.5), (16, 1.0)]
    """
    hulls = [_hull(undominated(i.options, price), price) for i in items]
    steps = [(price(b) - price(a), a.damage - b.damage) for hull in hulls for a, b in pairwise(hull)]
    points = [(sum(price(h[0]) for h in hulls), sum(h[0].damage for h in hulls))]
    for more, less in sorted(steps, key=lambda step: -step[1] / step[0]):
        points.append((points[-1][0] + more, points[-1][1] - less))
    return points


def _hull(options: Sequence[Option], price: Price) -> list[Option]:
    """Those of an item's undominated options that save most for their price: what each step saves falls."""
    kept: list[Option] = []
    for option in options:
        while len(kept) > 1 and _saves(kept[-2], kept[-1], price) <= _saves(kept[-1], option, price):
            kept.pop()
        kept.append(option)
    return kept


def _saves(a: Option, b: Option, price: Price) -> float:
    """Damage per unit of the price, from a to the dearer b."""
    return (a.damage - b.damage) / (price(b) - price(a))


def undominated(options: Sequence[Option], price: Price = BYTES) -> tuple[Option, ...]:
    """Those that no other beats in both price and damage, cheapest first; of equals the one of fewer bytes."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda o: (price(o), o.damage, o.bytes)):
        if not kept or option.damage < kept[-1].damage:
            kept.append(option)
    return tuple(kept)


def _exact(items: Sequence[Item], budget: int, price: Price) -> dict[str, Option] | None:
    """Dynamic programming over Pareto fronts; None if a front grows beyond FRONT."""
    front: list[tuple[int, float, tuple[Option, ...]]] = [(0, 0.0, ())]
    left = sum(price(i.options[0]) for i in items)
    for item in items:
        left -= price(item.options[0])
        grown = [
            (size + price(o), damage + o.damage, (*chosen, o))
            for size, damage, chosen in front
            for o in item.options
            if size + price(o) + left <= budget
        ]
        grown.sort(key=lambda x: x[:2])
        front = []
        for candidate in grown:
            if not front or candidate[1] < front[-1][1]:
                front.append(candidate)
        if len(front) > FRONT:
            return None
    return {item.name: option for item, option in zip(items, front[-1][2], strict=True)}


def _relaxed(items: Sequence[Item], budget: int, price: Price) -> dict[str, Option]:
    """The damage that a unit of the price is worth by bisection, then the rest of the budget spent on what helps most
    for its price."""
    low, high = 0.0, 1.0
    while sum(map(price, _at_worth(items, high, price))) > budget:
        high *= 4
    for _ in range(100):
        worth = (low + high) / 2
        low, high = (low, worth) if sum(map(price, _at_worth(items, worth, price))) <= budget else (worth, high)
    chosen = _at_worth(items, high, price)
    spare = budget - sum(map(price, chosen))
    while True:
        better = [
            ((old.damage - new.damage) / max(1, price(new) - price(old)), i, new)
            for i, (item, old) in enumerate(zip(items, chosen, strict=True))
            for new in item.options
            if new.damage < old.damage and price(new) - price(old) <= spare
        ]
        if not better:
            return {item.name: option for item, option in zip(items, chosen, strict=True)}
        _, i, new = max(better, key=lambda b: (b[0], -b[1]))
        spare -= price(new) - price(chosen[i])
        chosen[i] = new


def _at_worth(items: Sequence[Item], worth: float, price: Price) -> list[Option]:
    """Each item's option of least damage and price together; of equals the cheaper."""
    return [min(i.options, key=lambda o: (o.damage + worth * price(o), price(o))) for i in items]


def as_json(cost: str, items: Sequence[Item], chosen: Mapping[str, Option]) -> dict[str, Any]:
    """What was chosen from, and what was: the record that allocate-bits leaves. damage: of `cost`, per token."""
    return {
        "cost": cost,
        "items": [
            {
                "name": item.name,
                "members": item.members,
                "options": [_option(option) for option in item.options],
                "chosen": item.options.index(chosen[item.name]),
            }
            for item in items
        ],
    }


def _option(option: Option) -> dict[str, Any]:
    return {"bytes": option.bytes, "damage": option.damage, "what": str(option.what or "float")}


def from_json(data: Mapping[str, Any]) -> tuple[list[Item], dict[str, Option]]:
    """What as_json gave: the items, and the option of each that was chosen. `what` is the encoding's text."""
    items = [
        Item(i["name"], tuple(Option(o["bytes"], o["damage"], o["what"]) for o in i["options"]), tuple(i["members"]))
        for i in data["items"]
    ]
    return items, {item.name: item.options[i["chosen"]] for item, i in zip(items, data["items"], strict=True)}


def read(path: Path, key: str | None = None) -> tuple[list[Item], dict[str, Option]]:
    """Of the record at this path, as from_json. key: of what it must have been measured on.

    Raises PassError if there is none, or it is of something else.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
        measured, found = data["measured"], from_json(data)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        why = f"{type(error).__name__}: {error}"
        fix = "give the allocation.json of an artifact whose recipe has allocate-bits"
        raise PassError("there is no record of allocate-bits to go by", where=str(path), why=why, fix=fix) from error
    if key is not None and measured != key:
        raise PassError(
            "what was measured is not what would be measured now",
            where=str(path),
            why="the program, the text, the menu, the cost, the method, tokens, the seed or the code is another",
            fix="leave out measured=, or change nothing but the budget",
        )
    return found
