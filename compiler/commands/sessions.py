"""The plugins that a command works with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from drawplate.commands.output import Output
    from drawplate.plugins.manager import Session


def open_session(out: Output, save_ir: Path | None = None) -> Session:
    """All plugins; says so on stderr if one is broken, since what is then not found may be its. save_ir: a folder for
    the program's text around each pass."""
    from drawplate.commands.saving import saving
    from drawplate.plugins.manager import Session

    session = Session({"save-ir": saving(save_ir)} if save_ir else None)
    if session.problems:
        brought = {p.what.split(" ", 2)[1] for p in session.problems if p.what.startswith("plugin ")}
        out.note(
            f"plugins with problems: {', '.join(sorted(brought)) or 'one that is missing'} (see `drawplate plugins`)"
        )
    return session
