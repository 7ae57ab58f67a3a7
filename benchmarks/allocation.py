"""What allocating bits is worth: uniform and allocated at the same bytes, rounded and by GPTQ, rotated and not.

    python benchmarks/allocation.py MODEL --calibration FILE --evaluation FILE --bits 3

Each --bits makes one budget: what uniform bits in groups of 64 take, the vocabulary at 8 bits included. All rows of a
budget take those bytes or less; the last column is the share that is used.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from drawplate.analysis.sites import sites
from drawplate.api import compress
from drawplate.calibration import Calibration, load_text
from drawplate.canonical import canonicalise
from drawplate.capture import capture
from drawplate.evaluation import language
from drawplate.program import Program
from drawplate.tokens import Tokenizer

VOCABULARY = "quantize-embedding{bits=8,block=1x-1},quantize-weights{where=head,bits=8,block=1x-1}"
MENU = "bits=2x3x4x5x6x8,group=1x64,range=mse"
ROTATED = "fold-norms,rotate,"


def recipes(bits: int, budget: float) -> dict[str, str]:
    """What is compared, by name. budget: bits per weight."""
    uniform = f"quantize-weights{{bits={bits},block=1x64,scale=bf16,range=mse,method=%s}},{VOCABULARY}"
    allocated = f"allocate-bits{{budget={budget:.4f}bpw,{MENU},method=%s}}"
    return {
        "uniform, rounded": uniform % "round",
        "uniform, GPTQ": uniform % "gptq",
        "uniform, GPTQ, rotated": ROTATED + uniform % "gptq",
        "allocated, rounded": allocated % "round",
        "allocated, GPTQ": allocated % "gptq",
        "allocated, GPTQ, rotated": ROTATED + allocated % "gptq",
    }


def main(
    model: Path,
    calibration: Annotated[Path, typer.Option(help="Text that GPTQ and sensitivities are measured on.")],
    evaluation: Annotated[Path, typer.Option(help="Text that is measured, none of the other.")],
    bits: Annotated[list[int] | None, typer.Option(help="Uniform bits that make a budget; repeatable.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Rows to measure; all.")] = None,
    windows: Annotated[int, typer.Option(help="Of 1024 tokens.")] = 4,
    out: Annotated[Path, typer.Option(help="JSON with every row, added to what is there.")] = Path(
        "build/bench/allocation.json"
    ),
) -> None:
    """Measure and print."""
    captured = capture(model)
    program, tokenizer = canonicalise(captured.program), Tokenizer.load(model)
    text = load_text(calibration, tokenizer, 512, 64, 0)
    ids = load_text(evaluation, tokenizer, 1024, windows).windows
    rows: list[dict[str, Any]] = json.loads(out.read_text()) if out.is_file() else []
    for uniform in bits or [2, 3, 4]:
        budget = uniform_rate(program, uniform)
        for name, recipe in recipes(uniform, budget).items():
            if not only or name in only:
                rows.append({"bits": uniform, "row": name, **measure(program, recipe, text, ids)})
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text(json.dumps(rows, indent=1))
    Console(width=150).print(table(rows), highlight=False)


def uniform_rate(program: Program, bits: int) -> float:
    """Bits per weight of uniform bits in groups of 64 with 16-bit scales, and 8 bits per row of the vocabulary."""
    total, stored = 0, 0.0
    for site in sites(program):
        count = math.prod(site.shape)
        total += count
        stored += count * (bits + 16 / 64) if site.role == "linear" else count * 8 + site.shape[0] * 32
    return stored / total


def measure(program: Program, recipe: str, text: Calibration, ids: torch.Tensor) -> dict[str, Any]:
    """One row."""
    start = time.perf_counter()
    after = compress(program, recipe, calibration=text, cache=False)
    seconds = time.perf_counter() - start
    found = language({"original": program, "row": after}, ids, "original")["row"]
    against = found.against
    assert against is not None
    return {
        "recipe": recipe,
        "bytes": sum(w.nbytes for w in after.weights.values()),
        "seconds": round(seconds),
        "perplexity": str(found.perplexity),
        "kl": str(against.kl),
        "agreement": str(against.agreement),
    }


def table(rows: list[dict[str, Any]]) -> Table:
    """Budgets, and in each what was measured."""
    columns = ("budget of uniform bits", "stored", "MB", "perplexity", "KL (nats)", "same top token", "seconds")
    shown = Table(*columns)
    for row in sorted(rows, key=lambda r: int(r["bits"])):
        size = f"{row['bytes'] / 1e6:.2f}"
        cells = (row["row"], size, row["perplexity"], row["kl"], row["agreement"], str(row["seconds"]))
        shown.add_row(str(row["bits"]), *cells)
    return shown


if __name__ == "__main__":
    typer.run(main)
