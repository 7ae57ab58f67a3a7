"""The built-in passes, backends and recipes: registered by name, through the same door as everyone else's."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from drawplate.plugins.hookspecs import hookimpl

if TYPE_CHECKING:
    from drawplate.backendbase import Backend
    from drawplate.passbase import Pass


@hookimpl
def drawplate_passes() -> list[type[Pass]]:
    """One line per file of passes/; a test holds the two against each other."""
    return []


@hookimpl
def drawplate_backends() -> list[type[Backend]]:
    """One line per folder of backends/."""
    return []


@hookimpl
def drawplate_recipes() -> dict[str, str]:
    """The presets: every recipes/*.toml inside the package, named by its file."""
    folder = files("drawplate").joinpath("recipes")
    presets = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return {f.name.removesuffix(".toml"): f.read_text("utf-8") for f in presets}
