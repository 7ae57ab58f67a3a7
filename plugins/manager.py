"""Session: finds the plugins, asks them, remembers what was wrong with which. There is no module global."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, is_dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import pluggy

from drawplate.errors import PluginError
from drawplate.plugins import hookspecs

if TYPE_CHECKING:
    from drawplate.backendbase import Backend
    from drawplate.checkpoints.reader import Reader
    from drawplate.passbase import Pass
    from drawplate.recipe import Recipe
    from drawplate.runner import Observer

VARIABLE = "DRAWPLATE_PLUGINS"
_HOME = "drawplate"  # the distribution whose plugins load first and always: the built-ins
_NAME = re.compile(r"[a-z][a-z0-9]*([-.][a-z0-9]+)*")


@dataclass(frozen=True, order=True)
class Owner:
    """Who brought something: the entry point's name, its distribution and that one's version (else empty)."""

    plugin: str
    distribution: str = ""
    version: str = ""

    def __str__(self) -> str:
        origin = f"{self.distribution} {self.version}".strip()
        return f"{self.plugin} ({origin or 'given by the caller'})"

    @property
    def remedy(self) -> str:
        """Whom to turn to when this plugin is broken."""
        if not self.distribution:
            return "correct what was given to Session(extra=..)"
        if self.distribution == _HOME:
            return "reinstall drawplate; if that does not help, report it"
        return f"tell the author of {self.distribution}, or leave it out with {VARIABLE}"


class Session:
    """Everything that can be named in a recipe, and who brought it.

    The built-ins load first and always, then the entry points of group `drawplate`, sorted by name. The
    environment variable DRAWPLATE_PLUGINS limits the latter: unset loads all, empty none, `a,b` those two.
    A plugin that is broken lands in `problems` and takes nothing else down; of two things with one name
    the first stays.

    extra: more plugins by name (modules or objects with hook implementations), loaded last: for tests and
    for programs that embed drawplate. environment: where the variable is read from.
    """

    def __init__(
        self, extra: Mapping[str, object] | None = None, *, environment: Mapping[str, str] = os.environ
    ) -> None:
        self._manager = pluggy.PluginManager(hookspecs.GROUP)
        self._manager.add_hookspecs(hookspecs)
        self._problems: list[PluginError] = []
        self._plugins: dict[str, Owner] = {}
        self._owners: dict[tuple[str, str], Owner] = {}
        for point in self._chosen(environment.get(VARIABLE)):
            owner = _owner(point)
            try:
                plugin = point.load()
            except (Exception, SystemExit) as error:  # noqa: BLE001  (whatever a stranger's module does on import)
                self._report(owner, "could not be imported", where=point.value, error=error)
            else:
                self._register(owner, plugin)
        for name, plugin in (extra or {}).items():
            self._register(Owner(name), plugin)

    @property
    def plugins(self) -> tuple[Owner, ...]:
        """The plugins that were loaded, in the order in which they are asked."""
        return tuple(self._plugins.values())

    @cached_property
    def passes(self) -> Mapping[str, type[Pass]]:
        """Pass classes by the name that a recipe uses."""
        from drawplate.passbase import Pass

        return self._classes("drawplate_passes", "pass", Pass)

    @cached_property
    def backends(self) -> Mapping[str, type[Backend]]:
        """Backend classes by the name that a recipe uses."""
        from drawplate.backendbase import Backend

        return self._classes("drawplate_backends", "backend", Backend)

    @cached_property
    def readers(self) -> Mapping[str, type[Reader]]:
        """Reader classes by the name of the format."""
        from drawplate.checkpoints.reader import Reader

        return self._classes("drawplate_readers", "reader", Reader)

    @cached_property
    def recipes(self) -> Mapping[str, str]:
        """Preset recipes: TOML text by name. Nothing heavy is imported for this."""
        found: dict[str, str] = {}
        for owner, answer in self._ask("drawplate_recipes", dict):
            for name, text in answer.items():
                try:
                    tomllib.loads(text)
                except (tomllib.TOMLDecodeError, TypeError) as error:
                    what = f"brings recipe {name!r}, which is not TOML"
                    self._report(owner, what, where="drawplate_recipes", error=error)
                else:
                    self._take(found, "recipe", name, text, owner)
        return found

    def observers(self, recipe: Recipe) -> tuple[Observer, ...]:
        """What the plugins send to watch one compile of this recipe."""
        return tuple(o for _, answer in self._ask("drawplate_observers", list, recipe=recipe) for o in answer)

    @property
    def owners(self) -> Mapping[tuple[str, str], Owner]:
        """Who brought ("pass" | "backend" | "reader" | "recipe", name), of everything."""
        self._ask_all()
        return self._owners

    @property
    def problems(self) -> tuple[PluginError, ...]:
        """Everything that is wrong with a plugin. Asks all hooks but the observers' first: it is complete."""
        self._ask_all()
        return tuple(self._problems)

    def _ask_all(self) -> None:
        _ = self.passes, self.backends, self.readers, self.recipes

    def _chosen(self, variable: str | None) -> list[EntryPoint]:
        """The entry points to load, the built-ins first; wishes that nothing answers to are reported."""
        found = sorted(entry_points(group=hookspecs.GROUP), key=lambda p: (not _is_home(p), _owner(p)))
        if not any(map(_is_home, found)):
            raise PluginError(
                "drawplate's own passes and backends are not registered",
                why="their entry point comes with the installed package, and it is not installed",
                fix="run 'pip install drawplate' (in a clone: 'pip install -e .')",
            )
        if variable is None:
            return found
        wanted = {name.strip() for name in variable.split(",")} - {""}
        for name in sorted(wanted - {p.name for p in found}):
            known = [p.name for p in found if not _is_home(p)]
            self._problems.append(
                PluginError(
                    f"no plugin is called {name!r}",
                    where=f"environment variable {VARIABLE}",
                    why=f"installed are: {', '.join(known) or 'none besides the built-ins'}",
                    fix=_nearest(name, known) or "write entry-point names, separated by commas",
                )
            )
        return [p for p in found if _is_home(p) or p.name in wanted]

    def _register(self, owner: Owner, plugin: object) -> None:
        """Hand a plugin to pluggy and report every hook it got wrong; its good hooks stay."""
        if owner.plugin in self._plugins:
            self._report(
                owner,
                f"has the entry-point name of {self._plugins[owner.plugin]} and was left out",
                where=f"entry-point group '{hookspecs.GROUP}'",
                why="names of plugins are unique",
                fix="uninstall one of the two, or ask its author for another name",
            )
            return
        try:
            self._manager.register(plugin, owner.plugin)
        except (pluggy.PluginValidationError, ValueError) as error:
            if self._manager.is_registered(plugin):
                self._manager.unregister(plugin)
            self._report(owner, "does not fit the hooks and was left out", where="its hooks", error=error)
            return
        self._plugins[owner.plugin] = owner
        hooks = {name for name in vars(hookspecs) if name.startswith("drawplate_")}
        ours = {caller.name for caller in self._manager.get_hookcallers(plugin) or []}
        for name in sorted(ours - hooks):  # pluggy's check_pending() raises on the first; we want all
            self._report(
                owner,
                f"implements {name!r}, which is no hook",
                where=f"function {name}",
                why=f"the hooks are {', '.join(sorted(hooks))}",
                fix=_nearest(name, hooks) or "rename it",
            )
        for name in sorted(n for n in dir(plugin) if n.startswith("drawplate_") and n not in ours):
            self._report(
                owner,
                f"has a function {name!r} that is never called",
                where=f"function {name}",
                why="it is not marked as a hook",
                fix="put @hookimpl (from drawplate.plugins) above it, or rename it",
            )

    def _ask(self, hook: str, kind: type[Any], **arguments: Any) -> list[tuple[Owner, Any]]:
        """Each plugin's answer to one hook, as a `kind`; a plugin that raises is reported and left out."""
        answers = []
        everyone = dict(self._manager.list_name_plugin())
        for name, owner in self._plugins.items():
            others = [plugin for other, plugin in everyone.items() if other != name]
            caller = self._manager.subset_hook_caller(hook, remove_plugins=others)
            try:
                answers += [(owner, kind(answer)) for answer in caller(**arguments)]
            except (Exception, SystemExit) as error:  # noqa: BLE001  (a stranger's code)
                self._report(owner, f"failed in {hook}", where=f"function {hook}", error=error)
        return answers

    def _classes(self, hook: str, kind: str, base: type[Any]) -> dict[str, type[Any]]:
        """The classes that the plugins bring, by name; what is no such class is reported."""
        found: dict[str, type[Any]] = {}
        for owner, answer in self._ask(hook, list):
            for entry in answer:
                why = _flaw(entry, kind, base)
                if why:
                    what = f"brings something that is no {kind}"
                    self._report(owner, what, where=f"{hook}: {entry!r}", why=why)
                else:
                    self._take(found, kind, entry.name, entry, owner)
        return found

    def _take(self, found: dict[str, Any], kind: str, name: str, value: Any, owner: Owner) -> None:
        """Enter one named thing; the first of a name stays, and a clash names both owners."""
        first = self._owners.get((kind, name))
        if first is None:
            found[name] = value
            self._owners[kind, name] = owner
            return
        self._report(
            owner,
            f"brings {kind} {name!r}, which {first} brings too; the one of {first.plugin} is used",
            where=f"{kind} {name!r}",
            why="names are unique, and the built-ins come first, then plugins sorted by name",
            fix=f"rename it, or leave one out with {VARIABLE}",
        )

    def _report(
        self,
        owner: Owner,
        what: str,
        *,
        where: str,
        why: str = "",
        fix: str = "",
        error: BaseException | None = None,
    ) -> None:
        if error is not None:
            why = f"{type(error).__name__}: {error}".replace("\n", " ")
        problem = PluginError(f"plugin {owner} {what}", where=where, why=why, fix=fix or owner.remedy)
        problem.__cause__ = error
        self._problems.append(problem)


def _owner(point: EntryPoint) -> Owner:
    if point.dist is None:
        return Owner(point.name, "unknown distribution", "")
    return Owner(point.name, point.dist.name, point.dist.version)


def _is_home(point: EntryPoint) -> bool:
    return point.dist is not None and point.dist.name == _HOME


def _nearest(name: str, known: Iterable[str]) -> str:
    """'did you mean ..?' or nothing."""
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"did you mean {close[0]!r}?" if close else ""


def _flaw(entry: object, kind: str, base: type[Any]) -> str:
    """Why this is not a class of the kind; empty if it is."""
    if not isinstance(entry, type) or not issubclass(entry, base):
        return f"not a subclass of {base.__module__}.{base.__qualname__}"
    if not is_dataclass(entry) or not _frozen(entry):
        return f"a {kind} is a frozen dataclass: write @dataclass(frozen=True) above it"
    missing = getattr(entry, "__abstractmethods__", ())
    if missing:
        return f"it does not define {', '.join(sorted(missing))}"
    name = getattr(entry, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return f"its name is {name!r}: write lower-case letters, digits and dashes"
    return ""


def _frozen(entry: type[Any]) -> bool:
    return bool(getattr(entry, "__dataclass_params__").frozen)  # noqa: B009  (there is no public way to ask)
