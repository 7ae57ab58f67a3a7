"""`drawplate explain`: which layer hurts?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from drawplate.commands.options import AsJson, CalibrationFile, CalibrationTask, CalibrationTokens, Threads
from drawplate.commands.output import Output, percent, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from drawplate.explain.report import Explanation
    from drawplate.program import Program

WINDOW = 256  # tokens; shorter than an evaluation's, so that a thousand tokens are several windows
ROWS = 20  # of the table


def explain(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A folder that `compile` wrote.")],
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="The model that it was compiled from.")
    ] = None,
    text: Annotated[Path | None, typer.Option("--text", metavar="FILE", help="Text to measure harm on.")] = None,
    sites: Annotated[
        int,
        typer.Option("--sites", min=0, help="Weights to measure, the most harmful by expectation."),
    ] = 40,
    tokens: Annotated[int, typer.Option("--tokens", min=2, help="Tokens of text to read, in windows of 256.")] = 1024,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME|FILE.toml", help="Whose time is shared out.")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write a page with charts.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a page that is there.")] = False,
    calibration: CalibrationFile = None,
    calibration_tokens: CalibrationTokens = 32768,
    calibration_task: CalibrationTask = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Say which weights make an artifact worse than its model, by how much, and what better ones would cost.

    Each of the weights of most expected harm is measured twice: stored alone, and left alone as it was.
    """
    from drawplate.artifact import load_whole
    from drawplate.cache import Cache
    from drawplate.calibration import load_text
    from drawplate.commands.models import capture_canonical, read_calibration
    from drawplate.commands.sessions import open_session
    from drawplate.device import Device
    from drawplate.explaining import BYTES_ALONE
    from drawplate.explaining import explain as explain_artifact
    from drawplate.recipe import Recipe
    from drawplate.tokens import Tokenizer

    with Output(as_json) as out:
        _ask_beforehand(artifact, model, text, html, overwrite)
        assert model is not None
        assert text is not None
        opened = load_whole(artifact)
        session = open_session(out)
        rates = Device.load(device) if device else BYTES_ALONE
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        read = load_text(text, Tokenizer.load(artifact), min(WINDOW, tokens), max(1, tokens // WINDOW))
        seed = Recipe.parse(opened.manifest.recipe, session).seed
        original: Program = capture_canonical(model, out).program
        found = explain_artifact(
            opened,
            original,
            read,
            session,
            measured=sites,
            calibration=read_calibration(calibration, model, calibration_tokens, seed, calibration_task),
            device=rates,
            progress=out.progress,
            cache=Cache.default(),
        )
        if html is not None:
            _write(found, html)
        out.give(found.as_json(), *tables(found), *([f"page written to {html}"] if html else []))


def tables(found: Explanation) -> list[RenderableType]:
    """The verdict, and the weights that hurt most."""
    from drawplate.explain.page import figure
    from drawplate.explain.words import label, price
    from drawplate.explain.words import percent as share

    rows = [
        (
            i,
            label(part),
            part.encoding,
            price(part.bytes),
            percent(part.time_share),
            percent(part.output_error),
            figure(part.only),
            figure(part.won_back),
            f"{part.expected:.3g}",
            ("" if part.measured else "≈ ") + share(found.share(part.harm)),
        )
        for i, part in enumerate(found.parts[:ROWS], 1)
    ]
    columns = ("", "weight", "stored as", "size", "time", "output error", "KL alone", "KL won back", "expected", "loss")
    measured, all_ = len(found.measured), len(found.parts)
    title = (
        f"{min(ROWS, all_)} of {all_} weights, the worst first; {measured} measured on {found.tokens} tokens of "
        f"{found.text}, the others (≈) expected; KL in nats per token"
    )
    fallbacks = [f"outside the fast path: {f.op} ({f.count} times): {f.why}" for f in found.fallbacks]
    return [*(f"* {sentence}" for sentence in found.verdict), table(title, columns, rows), *fallbacks, *found.notes]


def _ask_beforehand(artifact: Path, model: str | None, text: Path | None, html: Path | None, overwrite: bool) -> None:
    """Raise for what is missing, before minutes are spent."""
    from drawplate.errors import EvaluationError, OutputError

    if model is None:
        raise EvaluationError(
            "the model that the artifact was compiled from is needed",
            where=str(artifact),
            why="an artifact holds what was stored, and not what it was rounded from",
            fix="add --model MODEL",
        )
    if text is None:
        raise EvaluationError(
            "a text is needed to measure harm on",
            why="harm is how far predictions move, and that depends on what is read",
            fix="add --text FILE, prose of a few thousand words in the model's language",
        )
    if html is not None and html.exists() and not overwrite:
        raise OutputError("there is a file already", where=str(html), fix="give another name, or add --overwrite")
    if html is not None:
        _refuse_without_charts(html)


def _refuse_without_charts(html: Path) -> None:
    """Raise OutputError if the page cannot be drawn here, or cannot be written there."""
    from importlib.util import find_spec

    from drawplate.errors import OutputError

    missing = [name for name in ("altair", "vl_convert") if find_spec(name) is None]
    if missing:
        raise OutputError(
            "the page cannot be drawn",
            why=f"{', '.join(missing)} is not installed",
            fix="pip install 'drawplate[explain]', or leave --html out",
        )
    if not html.resolve().parent.is_dir():
        raise OutputError("the page cannot be written", where=str(html), why="there is no such folder")


def _write(found: Explanation, html: Path) -> None:
    """Raises OutputError."""
    from drawplate.errors import OutputError
    from drawplate.explain.page import page
    from drawplate.files import write_text

    try:
        write_text(html, page(found))
    except OSError as error:
        raise OutputError("the page cannot be written", where=str(html), why=error.strerror or str(error)) from error
