"""Sessions, and what they say of broken plugins. The distributions are real ones: metadata and modules in a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from drawplate.errors import PluginError
from drawplate.plugins import hookspecs
from drawplate.plugins.manager import Session

Install = Callable[..., None]

PASSES = """
from dataclasses import dataclass
from drawplate.passbase import Pass
from drawplate.plugins import hookimpl

@dataclass(frozen=True)
class Polish(Pass):
    name = "polish"
    def run(self, program, env):
        return program

@hookimpl
def drawplate_passes():
    return [Polish]
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """install("name", "module source", entry="..") puts a distribution of that name, version 1.2, on the path."""
    monkeypatch.syspath_prepend(tmp_path)

    def put(name: str, source: str, *, entry: str | None = None) -> None:
        module = f"plugin_{name}_{tmp_path.name}".replace("-", "_")  # modules stay imported between tests
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[drawplate]\n{entry or name} = {module}\n")

    return put


def session(variable: str | None = None) -> Session:
    return Session(environment={} if variable is None else {"DRAWPLATE_PLUGINS": variable})


def only_problem(s: Session) -> str:
    (problem,) = s.problems
    return str(problem)


def test_every_hook_is_documented() -> None:
    hooks = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("drawplate_")}
    assert sorted(hooks) == [f"drawplate_{what}" for what in ("backends", "observers", "passes", "readers", "recipes")]
    for name, hook in hooks.items():
        assert len((hook.__doc__ or "").split()) > 20, f"{name} needs a docstring that a plugin author can work from"


def test_the_builtins_are_well() -> None:
    s = session("")
    assert [str(p) for p in s.problems] == []
    assert [p.distribution for p in s.plugins] == ["drawplate"]
    assert "8da8w" in s.recipes


def test_a_plugin_brings_its_pass(install: Install) -> None:
    install("acme", PASSES)
    s = session()
    assert s.passes["polish"].name == "polish"
    assert str(s.owners["pass", "polish"]) == "acme (acme 1.2)"
    assert not s.problems


def test_the_variable_limits_what_loads(install: Install) -> None:
    install("acme", PASSES)
    install("bolt", "raise RuntimeError('must not be imported')")
    assert "polish" not in session("").passes
    assert "quantize-weights" in session("").passes
    s = session(" acme ,")
    assert "polish" in s.passes
    assert not s.problems


def test_the_variable_names_nothing(install: Install) -> None:
    install("acme", PASSES)
    assert only_problem(session("acne")) == (
        "no plugin is called 'acne'\n"
        "  where: environment variable DRAWPLATE_PLUGINS\n"
        "  why:   installed are: acme\n"
        "  do:    did you mean 'acme'?"
    )


def test_a_plugin_that_raises_at_import_leaves_the_rest(install: Install) -> None:
    install("acme", PASSES)
    install("broken", "import a_module_that_is_not_there")
    s = session()
    assert "polish" in s.passes
    text = only_problem(s)
    assert text.startswith("plugin broken (broken 1.2) could not be imported\n")
    assert "why:   ModuleNotFoundError: No module named 'a_module_that_is_not_there'" in text
    assert "do:    tell the author of broken, or leave it out with DRAWPLATE_PLUGINS" in text


def test_a_plugin_that_exits_at_import_leaves_the_rest(install: Install) -> None:
    install("leaver", "raise SystemExit(3)")
    assert "could not be imported" in only_problem(session())


def test_a_hook_that_raises_is_reported_and_the_others_answer(install: Install) -> None:
    install("acme", PASSES)
    hook = "from drawplate.plugins import hookimpl\n@hookimpl\ndef drawplate_passes():\n    return 1 / 0\n"
    install("aaa", hook)
    s = session()
    assert "polish" in s.passes
    assert only_problem(s) == (
        "plugin aaa (aaa 1.2) failed in drawplate_passes\n"
        "  where: function drawplate_passes\n"
        "  why:   ZeroDivisionError: division by zero\n"
        "  do:    tell the author of aaa, or leave it out with DRAWPLATE_PLUGINS"
    )


def test_a_clash_names_both_owners_and_keeps_the_first(install: Install) -> None:
    install("zinc", PASSES)
    install("acme", PASSES)
    s = session()
    assert s.owners["pass", "polish"].distribution == "acme"
    assert only_problem(s) == (
        "plugin zinc (zinc 1.2) brings pass 'polish', which acme (acme 1.2) brings too; the one of acme is used\n"
        "  where: pass 'polish'\n"
        "  why:   names are unique, and the built-ins come first, then plugins sorted by name\n"
        "  do:    rename it, or leave one out with DRAWPLATE_PLUGINS"
    )


def test_nobody_takes_the_name_of_a_builtin(install: Install) -> None:
    install("acme", PASSES.replace('"polish"', '"quantize-weights"'))
    s = session()
    assert s.passes["quantize-weights"].__module__ == "drawplate.passes.quantize_weights"
    assert "which builtin (drawplate" in only_problem(s)


def test_two_plugins_with_one_entry_point_name(install: Install) -> None:
    install("acme", PASSES)
    install("zinc", PASSES.replace('"polish"', '"grind"'), entry="acme")
    s = session()
    assert "polish" in s.passes
    assert "grind" not in s.passes
    assert only_problem(s).startswith(
        "plugin acme (zinc 1.2) has the entry-point name of acme (acme 1.2) and was left out\n"
    )


def test_a_misspelled_hook(install: Install) -> None:
    install("acme", PASSES + "\n@hookimpl\ndef drawplate_recipies():\n    return {}\n")
    s = session()
    assert "polish" in s.passes
    assert only_problem(s) == (
        "plugin acme (acme 1.2) implements 'drawplate_recipies', which is no hook\n"
        "  where: function drawplate_recipies\n"
        "  why:   the hooks are drawplate_backends, drawplate_observers, drawplate_passes, drawplate_readers, "
        "drawplate_recipes\n"
        "  do:    did you mean 'drawplate_recipes'?"
    )


def test_a_hook_that_nobody_marked(install: Install) -> None:
    install("acme", PASSES.replace("@hookimpl", ""))
    text = only_problem(session())
    assert text.startswith("plugin acme (acme 1.2) has a function 'drawplate_passes' that is never called\n")
    assert "put @hookimpl (from drawplate.plugins) above it" in text


def test_a_hook_with_other_arguments(install: Install) -> None:
    install("acme", PASSES.replace("drawplate_passes()", "drawplate_passes(model)"))
    s = session()
    assert "polish" not in s.passes
    assert only_problem(s).startswith("plugin acme (acme 1.2) does not fit the hooks and was left out\n")


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("[Polish]", "['polish']", "not a subclass of drawplate.passbase.Pass"),
        (
            "@dataclass(frozen=True)",
            "@dataclass",
            "a pass is a frozen dataclass: write @dataclass(frozen=True) above it",
        ),
        ('"polish"', '"Polish It"', "its name is 'Polish It': write lower-case letters, digits and dashes"),
        ("def run", "def walk", "it does not define run"),
    ],
)
def test_something_that_is_no_pass(install: Install, old: str, new: str, why: str) -> None:
    install("acme", PASSES.replace(old, new))
    text = only_problem(session())
    assert text.startswith("plugin acme (acme 1.2) brings something that is no pass\n")
    assert f"why:   {why}\n" in text


def test_a_recipe_that_is_not_toml(install: Install) -> None:
    hook = "from drawplate.plugins import hookimpl\n@hookimpl\ndef drawplate_recipes():\n    return {'a': 'x ='}\n"
    install("acme", hook)
    s = session()
    assert "a" not in s.recipes
    assert only_problem(s).startswith("plugin acme (acme 1.2) brings recipe 'a', which is not TOML\n")


def test_a_plugin_given_by_the_caller(install: Install) -> None:
    class Mine:
        @staticmethod
        @hookspecs.hookimpl
        def drawplate_recipes() -> dict[str, str]:
            return {"mine": "passes = []\n"}

    s = Session({"mine": Mine()}, environment={})
    assert s.recipes["mine"] == "passes = []\n"
    assert str(s.owners["recipe", "mine"]) == "mine (given by the caller)"


def test_drawplate_without_its_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drawplate.plugins.manager.entry_points", lambda group: [])
    with pytest.raises(PluginError, match="drawplate's own passes and backends are not registered"):
        session()
