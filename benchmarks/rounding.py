"""What each way of rounding is worth, under one encoding: to nearest, by GPTQ, learned; scaled or rotated beforehand.

    python benchmarks/rounding.py MODEL --calibration FILE --evaluation FILE --bits 3

Groups of 64, the vocabulary at 8 bits. Each row is a process of its own, whose time and peak memory are its; rows that
were measured before are not measured again: delete the folder. Learned rounding has a reduced budget (see LEARNED).
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from rotations import VOCABULARY

from drawplate.api import compress
from drawplate.calibration import load_text
from drawplate.canonical import canonicalise
from drawplate.capture import capture
from drawplate.evaluation import language
from drawplate.tokens import Tokenizer

LEARNED = "range=mse,method=signround,steps=40,batch=1"
ROTATED, SCALED = "fold-norms,rotate,", "scale-channels{{bits={bits},block=1x64,steps=10%s}},"
ROWS = {
    "rounded": ("", "range=mse"),
    "rounded, min-max": ("", "range=minmax"),
    "scaled, rounded, min-max": (SCALED % "", "range=minmax"),
    "scaled, rounded": (SCALED % ",range=mse", "range=mse"),
    "GPTQ": ("", "range=mse,method=gptq"),
    "scaled, GPTQ": (SCALED % "", "range=minmax,method=gptq"),
    "rotated, GPTQ": (ROTATED, "range=mse,method=gptq"),
    "learned": ("", LEARNED),
    "rotated, learned": (ROTATED, LEARNED),
}
"""What comes first, and the options of quantize-weights, by the row's name."""


def main(
    model: Path,
    calibration: Annotated[Path, typer.Option(help="Text that is learned from.")],
    evaluation: Annotated[Path, typer.Option(help="Text that is measured, none of the other.")],
    bits: Annotated[list[int] | None, typer.Option(help="Of the weights; repeatable.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Rows to measure; all.")] = None,
    windows: Annotated[int, typer.Option(help="Of 1024 tokens.")] = 4,
    threads: int = os.cpu_count() or 1,
    folder: Annotated[Path, typer.Option(help="Where figures are.")] = Path("build/bench/rounding"),
    row: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure and print."""
    torch.set_num_threads(threads)
    if row is not None:
        _measure(model, calibration, evaluation, windows, row, folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [(n, name) for n in bits or [3, 4] for name in only or ROWS]
    for n, name in chosen:
        if not _file(folder, n, name).exists():
            command = [sys.executable, __file__, str(model), "--calibration", str(calibration)]
            command += ["--evaluation", str(evaluation), "--windows", str(windows), "--threads", str(threads)]
            command += ["--folder", str(folder), "--row", f"{n}:{name}:{recipe(n, name)}"]
            subprocess.run(command, check=True)
    rows = [(n, name, json.loads(_file(folder, n, name).read_text())) for n, name in chosen]
    Console(width=130).print(_table(rows), highlight=False)


def recipe(bits: int, name: str) -> str:
    """What a row runs."""
    before, how = ROWS[name]
    stored = f"quantize-weights{{bits={bits},block=1x64,{how}}},{VOCABULARY}"
    return before.format(bits=bits) + stored


def _file(folder: Path, bits: int, name: str) -> Path:
    return folder / f"w{bits}-{name.replace(', ', '-').replace(',', '-')}.json"


def _measure(model: Path, calibration: Path, evaluation: Path, windows: int, row: str, folder: Path) -> None:
    bits, name, passes = row.split(":", 2)
    program, tokenizer = canonicalise(capture(model).program), Tokenizer.load(model)
    text = load_text(calibration, tokenizer, 512, 64, 0)
    start = time.perf_counter()
    after = compress(program, passes, calibration=text, cache=False)
    seconds = round(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    ids = load_text(evaluation, tokenizer, 1024, windows).windows
    report = language({"original": program, "row": after}, ids, "original")["row"]
    assert report.against is not None
    found = {"recipe": passes, "perplexity": str(report.perplexity), "kl": str(report.against.kl)}
    found |= {"agreement": str(report.against.agreement), "seconds": seconds, "peak_rss_bytes": peak}
    found |= {"threads": torch.get_num_threads(), "load_average": os.getloadavg()[0]}
    _file(folder, int(bits), name).write_text(json.dumps(found, indent=1))
    print(bits, name, found, file=sys.stderr, flush=True)


def _table(rows: list[tuple[int, str, dict[str, Any]]]) -> Table:
    shown = Table("bits", "stored", "perplexity", "KL (nats)", "same top token", "seconds", "peak RSS GB")
    for bits, name, row in rows:
        cost = (str(row["seconds"]), f"{row['peak_rss_bytes'] / 1e9:.1f}")
        shown.add_row(str(bits), name, row["perplexity"], row["kl"], row["agreement"], *cost)
    return shown


if __name__ == "__main__":
    typer.run(main)
