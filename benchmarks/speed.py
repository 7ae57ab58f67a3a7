"""Decode and prefill rates of artifacts and, beside them, of the stock lowering's .pte: interleaved, medians, ratios.

    python benchmarks/speed.py fp32=build/demo/fp32 meta-8da4w=build/demo/meta-8da4w stock=build/bench/stock \\
        --baseline fp32 --baseline stock --threads 2

A folder holds a `model.pte`; all are run by the same runner in ExecuTorch's stock runtime, each turn in a process of
its own. `stock=FOLDER+omp` leaves torch's OpenMP threads beside the runtime's, as they are for who imports torch and
sets nothing. Or it holds another runtime's model: see peers.py. The last column is the share of the memory read rate
that decoding reaches, weights read once per token.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import peers
import typer
from rich.console import Console
from rich.table import Table

from drawplate.backends.xnnpack.backend import XnnpackBackend
from drawplate.bench import BenchReport, bench
from drawplate.isolate import Subject

OPENER = "drawplate.backends.xnnpack.runner:open_artifact"
RATIOS = ("decode_rate", "prefill_rate", "first_seconds", "cpu_per_token", "peak_bytes", "net_peak_bytes")


def main(
    folders: Annotated[list[str], typer.Argument(metavar="NAME=FOLDER...")],
    baseline: Annotated[list[str] | None, typer.Option(help="Names that ratios are taken to.")] = None,
    threads: int = os.cpu_count() or 1,
    rounds: int = 7,
    prompt: int = 64,
    new_tokens: int = 48,
    out: Annotated[Path | None, typer.Option(help="JSON with every round's figures.")] = None,
) -> None:
    """Measure and print."""
    subjects = [_subject(text) for text in folders]
    report = bench(subjects, threads=threads, rounds=rounds, prompt=prompt, new_tokens=new_tokens)
    console = Console(width=170)
    console.print(_table(report, {s.name: s.bytes for s in subjects}), highlight=False)
    for base in baseline or []:
        console.print(_ratios(report, base), highlight=False)
    if out is not None:
        out.write_text(json.dumps(report.as_json(), indent=1))


def _subject(text: str) -> Subject:
    name, _, given = text.partition("=")
    folder, omp, _ = given.partition("+omp")
    if peer := peers.opener(Path(folder)):
        files = tuple(f for f in Path(folder).iterdir() if f.suffix in (".gguf", ".onnx", ".data"))
        return Subject(name, Path(folder), peer, files)
    return Subject(name, Path(folder), OPENER, (Path(folder, "model.pte"),), None if omp else XnnpackBackend.openmp)


def _table(report: BenchReport, weights: dict[str, int]) -> Table:
    tokens = f"{report.prompt} + {report.new_tokens} tokens"
    title = f"{report.machine}; {report.threads} threads, {report.rounds} rounds, {tokens}"
    title += f"; memory reads {report.read_rate.median / 1e9:.1f} GB/s; load {report.load_average:.1f}"
    shown = Table("artifact", "MB", "decode tok/s", "prefill tok/s", "first token ms", "CPU ms/token", title=title)
    for column in ("load s", "peak RSS MB", "net RSS MB", "of the read rate"):
        shown.add_column(column)
    for row in report.rows:
        rates = [f"{getattr(row, key)}" for key in ("decode_rate", "prefill_rate")]
        times = [f"{1e3 * getattr(row, key).median:.1f}" for key in ("first_seconds", "cpu_per_token")]
        memory = [f"{getattr(row, key).median / 1e6:.0f}" for key in ("peak_bytes", "net_peak_bytes")]
        share = f"{report.bandwidth_share(row.name, weights[row.name]).median:.2f}"
        size = f"{row.file_bytes / 1e6:.1f}"
        shown.add_row(row.name, size, *rates, *times, f"{row.load_seconds.median:.2f}", *memory, share)
    return shown


def _ratios(report: BenchReport, base: str) -> Table:
    shown = Table("artifact", *RATIOS, title=f"over {base}, round by round")
    for row in report.rows:
        if row.name != base:
            shown.add_row(row.name, *(f"{report.ratio(row.name, base, what)}" for what in RATIOS))
    return shown


if __name__ == "__main__":
    typer.run(main)
