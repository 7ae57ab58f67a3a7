"""`drawplate calibrate-device`: this host's rates, for budgets in milliseconds."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from drawplate.commands.options import AsJson, Threads
from drawplate.commands.output import Output, table


def calibrate_device(
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE.toml", help="File to write (default: HOST.toml here).")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Interleaved rounds; medians are over these.")] = 3,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Measure how fast this host decodes and reads prompts, and write it as a device for --device and allocate-bits.

    A model with random weights is compiled in float32 and in 4 bits, and run: some minutes, best on a quiet host.
    """
    from drawplate.calibrating import calibrate
    from drawplate.commands.sessions import open_session
    from drawplate.files import write_text

    with Output(as_json) as shown:
        path = out or Path(f"{platform.node() or 'host'}.toml")
        _refuse(path, overwrite=overwrite)
        session = open_session(shown)
        cores = threads or os.cpu_count() or 1
        with shown.busy("calibrate"):
            found = calibrate(path.stem, threads=cores, rounds=rounds, session=session, progress=shown.progress)
        write_text(path, found.device.to_toml())
        device = found.device
        rows = [
            (kind, f"{rates.read / 1e9:.3g} GB/s", f"{rates.multiply_adds / 1e9:.3g} G/s")
            for kind, rates in (("floating point", device.float), ("integers", device.integer))
        ]
        columns = ("weights stored as", "read while decoding", "multiply-adds in a prompt")
        title = f"{device.source}; memory alone reads {found.read_rate / 1e9:.3g} GB/s"
        data = asdict(device) | {"memory_read_rate": found.read_rate, "file": str(path)}
        shown.give(data, table(title, columns, rows), f"written to {path}")


def _refuse(path: Path, *, overwrite: bool) -> None:
    """Raise OutputError where no device can be written, before minutes are spent on measuring one."""
    from drawplate.errors import OutputError

    if path.suffix != ".toml":
        why = "--device takes a shipped name, or the path of a .toml file"
        raise OutputError("the output is no .toml file", where=str(path), why=why, fix=f"write to {path}.toml")
    if not path.parent.is_dir():
        fix = "make the folder, or choose another"
        raise OutputError("the output's folder does not exist", where=str(path.parent), fix=fix)
    if path.exists() and not overwrite:
        raise OutputError("the output exists", where=str(path), fix="choose another, or replace it: --overwrite")
