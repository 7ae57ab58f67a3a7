"""The plugin door: hookspecs.py is the whole surface; built-ins come in through it like everyone else's."""

# Found from the repository root this folder is also importable as `plugins`, which would make a second
# copy of every class in it: isinstance and registration would then fail in ways that explain nothing.
if __name__ != "drawplate.plugins":
    raise ImportError(f"this package is called drawplate.plugins; it was imported as {__name__}")

from drawplate.plugins.hookspecs import hookimpl

__all__ = ["hookimpl"]
