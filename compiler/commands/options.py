"""Options that several commands take, spelled once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout and nothing else.")]
SOURCE = "Hugging Face folder or hub name, or a GGUF file."
Source = Annotated[str, typer.Argument(metavar="MODEL", help=SOURCE)]
Recipe = Annotated[
    str,
    typer.Option("--recipe", "-r", metavar="NAME|TEXT|FILE.toml", help="What to do: see `drawplate recipes list`."),
]
Target = Annotated[
    str | None,
    typer.Option("--backend", "-b", metavar="NAME", help="Backend and its options, if not the recipe's: xnnpack{..}."),
]
Context = Annotated[
    int | None, typer.Option("--context", min=1, metavar="TOKENS", help="Length of the key-value cache.")
]
CalibrationFile = Annotated[
    Path | None, typer.Option("--calibration", metavar="FILE", help="Text that passes may measure activations on.")
]
CalibrationTokens = Annotated[
    int, typer.Option("--calibration-tokens", min=2, help="Tokens to read of it, in windows of 512.")
]
CalibrationTask = Annotated[
    Path | None,
    typer.Option(
        "--calibration-task",
        metavar="FILE",
        help="Choice task that bits may be allocated to, or conversations to train on (JSON).",
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Of everything random, if not the recipe's.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Threads to compute with (default: all cores).")]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="SIZE|TIME",
        help="Most bytes that the files a device needs may take: 90MB, 86MiB. With a recipe that allocates bits, what "
        "it spends: also 4.25bpw, bits per weight, or 12ms/token on --device.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME|FILE.toml", help="Device whose time is meant: a shipped one, or a file."),
]
