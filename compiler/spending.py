"""A budget that is given beside a recipe: to the pass that spends it, or as a limit that the files are held against.

Bytes are of the files that a device needs: model and tokenizer, not the manifest and the records beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from drawplate.allocation import from_json
from drawplate.budget import Budget, Unaffordable
from drawplate.device import Device
from drawplate.errors import DrawplateError, RecipeError
from drawplate.options import options_of
from drawplate.passbase import Pass
from drawplate.planning import size
from drawplate.program import Program
from drawplate.recipe import Recipe
from drawplate.records import Record
from drawplate.roofline import cache_length, seconds


def budgeted(recipe: Recipe, budget: int | str | None, device: str | Path | None = None) -> tuple[Recipe, int | None]:
    """The recipe with the budget, and the device, in each pass that has an option for it; and the bytes that the files
    may take, if it is of bytes. Cheap. Raises RecipeError where it is no budget, or nobody can spend it."""
    if budget is None:
        return recipe, None
    asked = Budget.parse(str(budget))
    if not _spenders(recipe) and asked.unit != "bytes":
        raise RecipeError(
            f"no pass of the recipe can spend a budget of {asked.text}",
            where=f"recipe {recipe.name or recipe}",
            why="its bits are fixed; all that can be asked of its files is not to be larger than so many bytes",
            fix="use a recipe with allocate-bits, such as 'allocated'; 'plan --device' says what others take",
        )
    given = {"budget": asked.text} | ({} if device is None else {"device": str(device)})
    return _with(recipe, given), int(asked.amount) if asked.unit == "bytes" else None


Rehearsed = Callable[[Recipe], tuple[int, Sequence[Record]]]
"""Of a recipe: the bytes that its files take, 0 where that is not known beforehand, and the records of its passes."""


def fitted(recipe: Recipe, limit: int | None, rehearsed: Rehearsed) -> Recipe:
    """The recipe with a budget that leaves room for what its pass does not see, such as a tokenizer, so that the files
    that a device needs take `limit` bytes at most. Raises RecipeError, with the least limit, where the smallest entries
    of the menu do not fit."""
    if limit is None or not _spenders(recipe):
        return recipe
    try:
        files, records = rehearsed(recipe)
    except DrawplateError as error:
        if not isinstance(error.__cause__, Unaffordable):
            raise
        return _smallest(recipe, limit, error.__cause__.least, rehearsed)
    left: Mapping[str, Any] = next((r.data for r in records if r.name == "allocation" and r.data), {})
    if not left:
        return recipe
    items, chosen = from_json(left)
    room = limit - _off(limit) - (files - sum(option.bytes for option in chosen.values()))
    smallest = sum(min(o.bytes for o in item.options) for item in items)
    if room < smallest:
        return _smallest(recipe, limit, f"{smallest + left['around']}B", rehearsed)
    room += left["around"]
    return recipe if room >= limit else _with(recipe, {"budget": f"{room}B"})


def _smallest(recipe: Recipe, limit: int, budget: str, rehearsed: Rehearsed) -> Recipe:
    """The recipe with the least budget that its pass takes, if the files keep to the limit then. Raises RecipeError."""
    recipe = _with(recipe, {"budget": budget})
    files, _ = rehearsed(recipe)
    least = files + _off(files) + 1
    if least > limit:
        raise RecipeError(
            f"a budget of {size(limit)} cannot be met",
            why=f"the smallest that the menu allows takes {size(least)} with all that is beside it in the files",
            fix=f"give at least {math.ceil(least / 1e3) / 1e3:.3f}MB, or a menu with smaller entries",
        )
    return recipe


def refuse_slower(passes: Iterable[Pass], program: Program | None) -> None:
    """Raise RecipeError if the program behind all passes, where it is known, takes over 1 % more time than one of them
    was to keep to: that pass counts the program as it finds it, and a cache of its own option `context`."""
    for pass_ in passes:
        found: dict[str, Any] = {name: getattr(pass_, name, None) for name in ("budget", "device", "context")}
        if program is not None and all(found.values()):
            _refuse_slower(pass_.name, program, **found)


def _refuse_slower(name: str, program: Program, budget: str, device: str, context: int) -> None:
    asked, cached = Budget.parse(budget), cache_length(program) or context
    taken = 1e9 * seconds(program, Device.load(device), context=cached)
    if asked.unit != "time" or taken <= 1.01 * asked.amount:
        return
    why, fix = "what the passes behind it add takes time too", "give a smaller budget"
    if cached > context:
        why = f"the cache has {cached} positions, and {context} were counted"
        fix = f"give it context={cached}; --context sets it everywhere"
    what = f"a budget of {budget} is not kept: decoding would take {taken / 1e6:.3g} ms per token"
    raise RecipeError(what, where=f"{name}, device {device}", why=why, fix=fix)


def _off(count: int) -> int:
    """By how many bytes a prediction of so many may be off."""
    return count // 1000


def _spenders(recipe: Recipe) -> list[str]:
    return [p.name for p in recipe.passes if "budget" in options_of(type(p))]


def _with(recipe: Recipe, given: Mapping[str, str]) -> Recipe:
    """These options in each pass that has a budget. Raises RecipeError for what a pass refuses."""
    try:
        passes = [_given(p, given) for p in recipe.passes]
    except ValueError as error:
        where = ", ".join(f"{k}={v}" for k, v in given.items())
        raise RecipeError("the budget cannot be spent", where=where, why=str(error)) from error
    return recipe if tuple(passes) == recipe.passes else replace(recipe, passes=tuple(passes))


def _given(pass_: Any, options: Mapping[str, str]) -> Any:
    """The pass with those of the options that it has; as it is if it has no budget."""
    has = options_of(type(pass_))
    return replace(pass_, **{k: v for k, v in options.items() if k in has}) if "budget" in has else pass_
