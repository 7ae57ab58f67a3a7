"""What drawplate finds under the entry point `gguf`: one backend, and a recipe that suits it."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from drawplate.plugins import hookimpl

if TYPE_CHECKING:
    from drawplate.backendbase import Backend


@hookimpl
def drawplate_backends() -> list[type[Backend]]:
    """One backend, `gguf`."""
    from drawplate_gguf.backend import Gguf

    return [Gguf]


@hookimpl
def drawplate_recipes() -> dict[str, str]:
    """`gguf-q4`: linears in Q4_0, the vocabulary in Q8_0."""
    return {"gguf-q4": files("drawplate_gguf").joinpath("gguf-q4.toml").read_text("utf-8")}
