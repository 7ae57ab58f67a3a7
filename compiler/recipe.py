"""Recipe: everything that decides an output, and nothing else. As text, as TOML, as Python values."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import tomli_w

from drawplate.errors import RecipeError
from drawplate.options import build, element, options_of, read, read_toml, said, spec, unknown, write_toml
from drawplate.recipetext import Element, parse_elements

if TYPE_CHECKING:
    from drawplate.backendbase import Backend
    from drawplate.passbase import Pass

T = TypeVar("T")


class Registry(Protocol):
    """What recipe names are looked up in; plugins.manager.Session is one. recipes: TOML text by name."""

    @property
    def passes(self) -> Mapping[str, type[Pass]]: ...
    @property
    def backends(self) -> Mapping[str, type[Backend]]: ...
    @property
    def recipes(self) -> Mapping[str, str]: ...


@dataclass(frozen=True)
class Recipe:
    """The passes in the order they were written, and the backend with its options.

    options: the backend's, where they differ from their defaults. seed: of everything random. pinned: the
    written order is the order, and needing another is an error. name and description are labels: they decide
    nothing, and two recipes that differ in them are equal.

    The text form is `fold-norms,rotate{kind=hadamard} -> xnnpack{context=512} with{seed=3,pinned=true}`. The
    backend and `with` may be missing, and a preset's name may stand first, for its passes. Defaults are left
    out, so that each recipe has one text, and parse(str(r)) == r.
    """

    passes: tuple[Pass, ...] = ()
    backend: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    pinned: bool = False
    name: str = field(default="", compare=False)
    description: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))

    @classmethod
    def of(
        cls, passes: Iterable[Pass], backend: Backend | None = None, *, seed: int = 0, pinned: bool = False
    ) -> Recipe:
        """A recipe from the things themselves."""
        recipe = cls(tuple(passes), seed=seed, pinned=pinned)
        return recipe.on(backend) if backend else recipe

    def __str__(self) -> str:
        parts = [",".join(map(spec, self.passes))]
        parts += [f"-> {self.backend_text}"] if self.backend else []
        settings = {"seed": self.seed} if self.seed else {}
        settings |= {"pinned": True} if self.pinned else {}
        parts += [element("with", settings)] if settings else []
        return " ".join(part for part in parts if part)

    @classmethod
    def load(cls, source: str | Path | Recipe, session: Registry) -> Recipe:
        """A preset's name, a path to a .toml file, a text, or a recipe as it is. Raises RecipeError."""
        if isinstance(source, Recipe):
            return source
        if str(source) in session.recipes:
            text, name = session.recipes[str(source)], str(source)
            return cls.from_toml(text, session, where=f"recipe {name}", name=name)
        if isinstance(source, Path) or source.endswith(".toml"):
            path = Path(source)
            try:
                text = path.read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise RecipeError("the recipe could not be read", where=str(path), why=str(error)) from None
            return cls.from_toml(text, session, where=str(path), name=path.stem)
        return cls.parse(source, session)

    @classmethod
    def parse(cls, text: str, session: Registry) -> Recipe:
        """From the text form. Unknown names, keys and values are RecipeErrors, told with place and remedy."""
        passes, backend, settings = parse_elements(text)
        base = cls()
        if passes and passes[0].name not in session.passes:
            base = cls._preset(passes.pop(0), session)
        for e in passes:
            if e.name in session.recipes and e.name not in session.passes:
                raise RecipeError(
                    f"recipe {e.name!r} stands behind something else",
                    where=e.where,
                    why="a preset's name stands first, for its passes",
                    fix="write it first, or its passes here ('drawplate recipes show' prints them)",
                )
        made = [_make(e, session.passes, "pass") for e in passes]
        recipe = replace(base, passes=(*base.passes, *made))
        if made or backend or settings:  # something was changed, so it is no longer the preset of that name
            recipe = replace(recipe, name="", description="")
        if backend:
            recipe = recipe.on(_make(backend, session.backends, "backend"))
        return replace(recipe, **_settings(settings))

    @classmethod
    def _preset(cls, first: Element, session: Registry) -> Recipe:
        """What stands first and is no pass."""
        if first.name not in session.recipes:
            raise unknown(first.name, {"recipe": session.recipes, "pass": session.passes}, first.where)
        if first.options:
            raise RecipeError(
                f"recipe {first.name!r} takes no options here",
                where=first.where,
                why="a preset's name stands for its passes as they are",
                fix=f"write its passes out: {cls.load(first.name, session)}",
            )
        return cls.load(first.name, session)

    def on(self, backend: Backend) -> Recipe:
        """The same passes for this backend."""
        return replace(self, backend=backend.name, options=said(backend))

    def retarget(self, text: str, session: Registry) -> Recipe:
        """The same passes for the backend that the text names: `xnnpack{context=1024}`."""
        passes, backend, settings = parse_elements("-> " + text)
        assert backend is not None
        assert not passes
        if settings:
            raise RecipeError("'with' belongs to a recipe, not to a backend", where=settings.where)
        return self.on(_make(backend, session.backends, "backend"))

    def make_backend(self, session: Registry) -> Backend:
        """The backend with its options. Raises RecipeError if the recipe names none."""
        if not self.backend:
            known = sorted(session.backends)
            raise RecipeError(
                "the recipe names no backend",
                where=f"recipe {self.name or self}",
                fix=f"write '-> NAME' behind it; there are: {', '.join(known) or 'none'}",
            )
        where = f"recipe {self.name or self}"
        owner = _known(session.backends, self.backend, "backend", where)
        options = options_of(owner)
        for key in self.options:
            _known(options, key, f"option of {self.backend}", where)
        made: Backend = build(owner, self.options, where)
        return made

    @property
    def backend_text(self) -> str:
        """`xnnpack{context=512}`; retarget() reads it back."""
        return element(self.backend, self.options) if self.backend else ""

    def to_toml(self) -> str:
        """The same content for a file: from_toml(to_toml(r)) == r, and both are deterministic."""
        table: dict[str, Any] = {"description": self.description} if self.description else {}
        table |= {"seed": self.seed} if self.seed else {}
        table |= {"pinned": True} if self.pinned else {}
        if self.backend:
            table["backend"] = {"name": self.backend, **{k: write_toml(v) for k, v in self.options.items()}}
        table["passes"] = [{"name": p.name, **{k: write_toml(v) for k, v in said(p).items()}} for p in self.passes]
        return tomli_w.dumps(table)

    @classmethod
    def from_toml(cls, text: str, session: Registry, *, where: str = "recipe", name: str = "") -> Recipe:
        """From TOML: description, seed, pinned; [backend] and each of [[passes]] with its name and options.

        Raises RecipeError, which names the entry, such as `my.toml: passes[1] (rotate)`.
        """
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise RecipeError("the recipe is not TOML", where=where, why=str(error)) from None
        for key in table:
            _known(dict.fromkeys(_KEYS), key, "key of a recipe", where)
        entries = enumerate(_list(table.get("passes", []), where))
        passes = tuple(_from_table(e, session.passes, "pass", f"{where}: passes[{i}]") for i, e in entries)
        settings = {k: read_toml(table[k], option, where) for k, option in _SETTINGS.items() if k in table}
        recipe = cls(passes, name=name, description=str(table.get("description", "")), **settings)
        if "backend" in table:
            recipe = recipe.on(_from_table(table["backend"], session.backends, "backend", f"{where}: backend"))
        return recipe


@dataclass(frozen=True)
class _Settings:
    """What `with{..}` and the top of a TOML recipe may say."""

    seed: int = 0
    pinned: bool = False


_SETTINGS = options_of(_Settings)
_KEYS = (*_SETTINGS, "description", "passes", "backend")


def _settings(e: Element | None) -> dict[str, Any]:
    """What `with{..}` says."""
    given = e.options.items() if e else ()
    return {k: read(v.text, _known(_SETTINGS, k, "setting", v.where), v.where) for k, v in given}


def _known(known: Mapping[str, T], name: str, kind: str, where: str) -> T:
    if name not in known:
        raise unknown(name, {kind: known}, where)
    return known[name]


def _make(e: Element, known: Mapping[str, type[Any]], kind: str) -> Any:
    """The pass or backend that an element of the text form names."""
    owner = _known(known, e.name, kind, e.where)
    options = options_of(owner)
    kind = f"option of {e.name}"
    values = {k: read(v.text, _known(options, k, kind, v.where), v.where) for k, v in e.options.items()}
    return build(owner, values, e.where)


def _from_table(table: Any, known: Mapping[str, type[Any]], kind: str, where: str) -> Any:
    """The pass or backend that a TOML table names. A bare string is a name without options."""
    table = {"name": table} if isinstance(table, str) else table
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        there_are = ", ".join(sorted(known))
        raise RecipeError(f"a {kind} without a name", where=where, fix=f'write name = "..", one of: {there_are}')
    name = table["name"]
    owner = _known(known, name, kind, where)
    options, where = options_of(owner), f"{where} ({name})"
    given = {k: v for k, v in table.items() if k != "name"}
    values = {k: read_toml(v, _known(options, k, f"option of {name}", where), where) for k, v in given.items()}
    return build(owner, values, where)


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise RecipeError("'passes' is not a list", where=where, fix='write [[passes]] and under it name = ".."')
    return value
