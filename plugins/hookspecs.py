"""The whole extension surface. A plugin implements some of these five hooks, and nothing else is asked of it.

    # my_package/plugin.py                              # my_package's pyproject.toml
    from drawplate.plugins import hookimpl              [project.entry-points.drawplate]
                                                        my-name = "my_package.plugin"
    @hookimpl
    def drawplate_passes():
        from my_package.fold_scales import FoldScales
        return [FoldScales]

Import heavy packages (torch, a vendor's SDK) inside the hook or, better, inside the class that needs them:
every plugin module is imported whenever drawplate lists its passes. Names are unique across all plugins.
What a plugin gets wrong is reported by `drawplate plugins`, with its distribution and version, and leaves
the rest working.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from drawplate.backendbase import Backend
    from drawplate.checkpoints.reader import Reader
    from drawplate.passbase import Pass
    from drawplate.recipe import Recipe
    from drawplate.runner import Observer

GROUP = "drawplate"
"""The entry-point group, and pluggy's project name."""

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec
def drawplate_passes() -> Iterable[type[Pass]]:
    """The plugin's passes: subclasses of `drawplate.passbase.Pass` that are frozen dataclasses.

    `name` is what a recipe says (lower case, digits and dashes, a verb first: `fold-scales`); the dataclass's
    fields are the options that it may give, and each needs a default or must be written in every recipe.
    Hold a new pass against `drawplate.testing.check_pass`.
    """
    return ()


@hookspec
def drawplate_backends() -> Iterable[type[Backend]]:
    """The plugin's backends: subclasses of `drawplate.backendbase.Backend` that are frozen dataclasses.

    `name` is what a recipe says after its arrow, the fields are its options. `target` is data and is read
    before anything else is done, so it must cost nothing; import an SDK in `emit` and `open`.
    Hold a new backend against `drawplate.testing.check_backend`.
    """
    return ()


@hookspec
def drawplate_readers() -> Iterable[type[Reader]]:
    """The plugin's readers of stored models: subclasses of `drawplate.checkpoints.reader.Reader`, frozen dataclasses.

    Whoever opens a model asks each reader, in the order of the plugins, whether the folder or file is of its kind; so
    `claims` must be cheap. What it reads becomes a Program whose weights stay the integers that they are.
    """
    return ()


@hookspec
def drawplate_recipes() -> Mapping[str, str]:
    """The plugin's preset recipes: name -> TOML text, as `drawplate recipes show NAME` prints it.

    A recipe may use passes and backends of other plugins; it is parsed when it is asked for.
    """
    return {}


@hookspec
def drawplate_observers(recipe: Recipe) -> Iterable[Observer]:
    """Objects that watch one compile: the runner tells them of every pass, before and after.

    Asked once per compile, with its recipe, so an observer may keep state. It looks and does not touch: the
    program that it is given is the one the next pass gets, tensors included.
    """
    return ()
