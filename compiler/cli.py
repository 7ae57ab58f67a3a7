"""The command line: `drawplate COMMAND`. Each command is a thin function over the Python interface."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from typer.core import TyperGroup

from drawplate.commands import calibrating, compiling, discovering, explaining, inspecting, measuring, running


class _Group(TyperGroup):
    """Takes --debug wherever it stands, since it is added behind a command that has just failed."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        if "--debug" in args:
            args = ["--debug", *(a for a in args if a != "--debug")]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"drawplate {version('drawplate')}")
        raise typer.Exit


@app.callback()
def drawplate(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and what libraries say.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Compile a language model to a device budget, with proof."""
    if debug:
        os.environ["DRAWPLATE_DEBUG"] = "1"


app.command("compile", short_help="Compress a model and write it for a device.")(compiling.compile_)
app.command("plan", short_help="Say what compile would do; loads no weights.")(compiling.plan)
app.command("inspect", short_help="Show what a model or an artifact is made of.")(inspecting.inspect)
app.command("eval", short_help="Measure how good a model or an artifact is.")(measuring.evaluate)
app.command("explain", short_help="Say which layers of an artifact hurt, and what to do.")(explaining.explain)
app.command("bench", short_help="Measure how fast and how large artifacts are.")(measuring.bench)
app.command("calibrate-device", short_help="Measure this host, for budgets in milliseconds.")(
    calibrating.calibrate_device
)
app.command("run", short_help="Generate text, or talk.")(running.run)
app.command("plugins", short_help="List plugins, what they bring and what is wrong.")(discovering.plugins)
app.add_typer(discovering.recipes, name="recipes", short_help="List preset recipes, or show one.")
app.command("replay", short_help="Run a failed pass again from its reproducer.")(compiling.replay)


def main() -> None:
    """Entry point. Exit codes: 0 done; 1 a mistake, told in full; 2 a misspelled command line; 130 interrupted."""
    from drawplate.errors import DrawplateError

    try:
        app()
    except DrawplateError as error:
        if os.environ.get("DRAWPLATE_DEBUG"):
            raise
        print(error, file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if os.environ.get("DRAWPLATE_DEBUG"):
            raise
        print(_bug(error), file=sys.stderr)
        sys.exit(1)


def _bug(error: Exception) -> str:
    """Our own mistake, in the form of the user's: no traceback, but the way to one."""
    import traceback

    frame = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"drawplate failed: {type(error).__name__}: {error}\n"
        f"  where: {os.path.basename(frame.filename)}:{frame.lineno}, in {frame.name}\n"  # noqa: PTH119
        "  why:   this is a mistake in drawplate or in a plugin, not in what you asked for\n"
        "  do:    run it again with --debug and report what it prints"
    )


if __name__ == "__main__":
    main()
