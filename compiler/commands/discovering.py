"""`drawplate plugins`, `drawplate recipes`: what can be named, and who brought it."""

from __future__ import annotations

import inspect
from collections import defaultdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from drawplate.commands.options import AsJson
from drawplate.commands.output import Output, describe, table

if TYPE_CHECKING:
    from drawplate.plugins.manager import Session


def plugins(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A pass or a backend: its options.")] = None,
    as_json: AsJson = False,
) -> None:
    """List passes, backends, readers and recipes with the plugin that brought each, and what is wrong; with a NAME,
    what one pass or backend does, and its options.

    DRAWPLATE_PLUGINS limits what loads beside the built-ins: unset all, empty none, `a,b` those two.
    Exit code 1 if a plugin has a problem.
    """
    from drawplate.plugins.manager import Session

    with Output(as_json) as out:
        session = Session()
        if name is not None:
            _explain(name, session, out)
            return
        brought: dict[Any, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for (kind, name), owner in sorted(session.owners.items()):
            brought[owner][kind].append(name)
        kinds = ("pass", "backend", "reader", "recipe")
        data = {
            "plugins": [
                {"name": o.plugin, "distribution": o.distribution, "version": o.version}
                | {kind: brought[o][kind] for kind in kinds}
                for o in session.plugins
            ],
            "problems": [describe(p) for p in session.problems],
        }
        rows = [
            (o.plugin, o.distribution, o.version, *("\n".join(brought[o][kind]) for kind in kinds))
            for o in session.plugins
        ]
        columns = ("plugin", "distribution", "version", "passes", "backends", "readers", "recipes")
        problems = [f"\n{problem}" for problem in session.problems]
        out.give(data, table("", columns, rows), *problems)
        if session.problems:
            raise typer.Exit(1)


def _explain(name: str, session: Session, out: Output) -> None:
    """One pass or backend: what it says of itself, and its options."""
    from dataclasses import MISSING

    from drawplate.errors import RecipeError
    from drawplate.options import nearest, options_of, write

    known: dict[str, Any] = {**session.backends, **session.passes}
    if name not in known:
        raise RecipeError(f"no pass or backend is called {name!r}", fix=nearest(name, known))
    owner = session.owners["pass" if name in session.passes else "backend", name]
    about = inspect.getdoc(known[name]) or ""
    options = [
        {"name": o.name, "takes": o.kind.name, "default": None if o.default is MISSING else write(o.default)}
        for o in options_of(known[name]).values()
    ]
    rows = [(o["name"], o["takes"], o["default"] or "must be given") for o in options]
    data = {"name": name, "brought_by": str(owner), "about": about, "options": options}
    out.give(data, f"{name}: {about}", table("", ("option", "takes", "default"), rows))


recipes = typer.Typer(help="Preset recipes: list them, or show one as TOML.", no_args_is_help=True)


@recipes.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the preset recipes."""
    from drawplate.plugins.manager import Session

    with Output(as_json) as out:
        session = Session()
        rows = []
        for name, text in session.recipes.items():
            recipe = _parse(text, name, session)
            owner = session.owners["recipe", name]
            rows.append({"name": name, "recipe": str(recipe), "description": recipe.description, "owner": str(owner)})
        out.give(rows, table("", ("recipe", "what it is for", "brought by"), [
            (r["name"], r["description"], r["owner"]) for r in rows
        ]))  # fmt: skip


@recipes.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A preset's name, or a recipe's text.")], as_json: AsJson = False
) -> None:
    """Print one recipe as TOML, ready to be saved and changed."""
    from drawplate.plugins.manager import Session
    from drawplate.recipe import Recipe

    with Output(as_json) as out:
        session = Session()
        recipe = Recipe.load(name, session)
        text = session.recipes.get(name) or recipe.to_toml()
        out.give({"name": recipe.name, "recipe": str(recipe), "toml": text}, text.rstrip("\n"))


def _parse(text: str, name: str, session: Session) -> Any:
    from drawplate.recipe import Recipe

    return Recipe.from_toml(text, session, where=f"recipe {name}", name=name)
