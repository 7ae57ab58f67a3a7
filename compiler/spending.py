"""A budget that is given beside a recipe: to the pass that spends it, or as a limit that the files are held against."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from drawplate.allocation import from_json
from drawplate.budget import Budget
from drawplate.errors import RecipeError
from drawplate.options import options_of
from drawplate.planning import size
from drawplate.recipe import Recipe
from drawplate.records import Record


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


def fitted(recipe: Recipe, limit: int | None, files: int, records: Iterable[Record]) -> Recipe:
    """The recipe with a budget that leaves room for what its pass does not see, such as a tokenizer, so that all files
    together take `limit` bytes at most. files: that they took in a rehearsal; records: that its passes left. Raises
    RecipeError, with the least limit, where the smallest entries of the menu do not fit."""
    left: Mapping[str, Any] = next((r.data for r in records if r.name == "allocation" and r.data), {})
    if limit is None or not left or not _spenders(recipe):
        return recipe
    items, chosen = from_json(left)
    besides = files - sum(option.bytes for option in chosen.values()) + limit // 1000  # files are predicted that well
    least = besides + sum(min(o.bytes for o in item.options) for item in items)
    if least > limit:
        raise RecipeError(
            f"a budget of {size(limit)} cannot be met",
            why=f"the smallest that the menu allows takes {size(least)} with all that is beside it in the files",
            fix=f"give at least {math.ceil(least / 1e4) / 100:.2f}MB, or a menu with smaller entries",
        )
    room = limit - besides + left["around"]
    return recipe if room >= limit else _with(recipe, {"budget": f"{room}B"})


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
