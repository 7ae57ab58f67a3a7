"""`--save-ir`: an observer that writes the program's text before the first pass and after each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from drawplate.errors import OutputError

if TYPE_CHECKING:
    from drawplate.passbase import Pass
    from drawplate.program import Program
    from drawplate.recipe import Recipe
    from drawplate.runner import Observer, Timing


class Texts:
    """Writes 00-captured.txt, 01-quantize-weights.txt, .. as the passes run."""

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError("the folder for texts cannot be made", where=str(folder), why=str(error)) from error
        self._folder = folder
        self._count = 0

    def before(self, pass_: Pass, program: Program) -> None:
        if self._count == 0:
            self._write("captured", program)

    def after(self, pass_: Pass, program: Program, timing: Timing) -> None:
        self._write(pass_.name, program)

    def _write(self, name: str, program: Program) -> None:
        (self._folder / f"{self._count:02}-{name}.txt").write_text(f"{program}\n", encoding="utf-8")
        self._count += 1


def saving(folder: Path) -> object:
    """A plugin that sends a Texts to every compile."""
    from drawplate.plugins import hookimpl

    class Plugin:
        @hookimpl
        def drawplate_observers(self, recipe: Recipe) -> list[Observer]:
            return [Texts(folder)]

    return Plugin()
