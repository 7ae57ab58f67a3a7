"""What training under quantisation is worth: rounding, GPTQ, Block-AP, and scales trained after it, rotated or not.

    python benchmarks/training.py MODEL --calibration FILE --evaluation FILE --scheme w2g64

Every row is a process of its own, whose time and peak memory are its; rows of which one goes on where another ended
take its result from the cache, and its seconds are added. All read the same windows of the calibration text; the
vocabulary is stored at 8 bits per row in all of them. A row that was measured before is kept.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from drawplate.analysis.sites import sites
from drawplate.cache import Cache
from drawplate.calibration import load_text
from drawplate.canonical import canonicalise
from drawplate.capture import capture
from drawplate.evaluate.choices import choices, load_items
from drawplate.evaluate.statistics import mean, paired
from drawplate.evaluation import language
from drawplate.passbase import Env
from drawplate.plugins.manager import Session
from drawplate.recipe import Recipe
from drawplate.runner import run_passes
from drawplate.tokens import Tokenizer

BYTES = "bits=8,block=1x-1,scale=bf16"
VOCABULARY = f"quantize-embedding{{{BYTES}}},quantize-weights{{where=head,{BYTES}}}"
SCHEMES = {
    "w2g64": "bits=2,block=1x64,symmetric=false,scale=bf16",
    "w2g128": "bits=2,block=1x128,ragged=true,symmetric=false,scale=bf16",
    "w3g128": "bits=3,block=1x128,ragged=true,symmetric=false,scale=bf16",
    "w4g128": "bits=4,block=1x128,ragged=true,symmetric=false,scale=bf16",
    "8da4w": "bits=4,block=1x32,scale=bf16",
}
METHODS = {
    "rounding": "quantize-weights{{{scheme},range=mse}}",
    "GPTQ": "quantize-weights{{{scheme},range=mse,method=gptq,tokens={tokens}}}",
    "Block-AP": "train-blocks{{{scheme},tokens={tokens}{blocks}}}",
    "Block-AP, E2E-QP": "train-blocks{{{scheme},tokens={tokens}{blocks}}},train-scales{{tokens={tokens}{scales}}}",
}
ROTATED = "fold-norms,rotate,"


def main(
    model: Path,
    calibration: Annotated[Path, typer.Option(help="Text that is trained on.")],
    evaluation: Annotated[Path, typer.Option(help="Text that is measured, none of the other.")],
    scheme: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(SCHEMES)}; all.")] = None,
    method: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(METHODS)}; all.")] = None,
    rotated: Annotated[bool | None, typer.Option(help="Only rows of the rotated model, or none; both.")] = None,
    tokens: Annotated[int, typer.Option(help="Of calibration.")] = 32768,
    blocks: Annotated[str, typer.Option(help="More options of train-blocks, as in ,epochs=2")] = "",
    scales: Annotated[str, typer.Option(help="More options of train-scales.")] = "",
    windows: Annotated[int, typer.Option(help="Of 1024 tokens.")] = 4,
    task: Annotated[Path | None, typer.Option(help="Choice task.")] = None,
    threads: int = os.cpu_count() or 1,
    folder: Annotated[Path, typer.Option(help="Where rows are kept.")] = Path("build/bench/training"),
    row: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure and print."""
    torch.set_num_threads(threads)
    if row is not None:
        figures = _measured(model, row, calibration, evaluation, tokens, windows, task, folder)
        (folder / "row.json").write_text(json.dumps(figures, indent=1))
        return
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "rows.json"
    rows: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
    for name, recipe in _rows(scheme, method, rotated, tokens=tokens, blocks=blocks, scales=scales).items():
        known = rows.get(name, {})
        if known.get("recipe") == recipe and (task is None or "right" in known):
            continue
        subprocess.run([sys.executable, *sys.argv, "--row", recipe], check=True)
        rows[name] = json.loads((folder / "row.json").read_text())
        kept.write_text(json.dumps(rows, indent=1))
    Console(width=150).print(_table(rows), highlight=False)


def _rows(
    schemes: list[str] | None, methods: list[str] | None, rotated: bool | None, **options: object
) -> dict[str, str]:
    """Recipes by name; the model as it is has none."""
    found = {"original": ""}
    for scheme in schemes or SCHEMES:
        for turned in (False, True) if rotated is None else (rotated,):
            for method in methods or METHODS:
                passes = METHODS[method].format(scheme=SCHEMES[scheme], **options)
                rounded = f",quantize-activations,{VOCABULARY}" if scheme.startswith("8da") else ""
                first = "" if rounded else f"{VOCABULARY},"
                name = f"{scheme}: {method}{', rotated' * turned}"
                found[name] = f"{ROTATED * turned}{first}{passes}{rounded}"
    return found


def _measured(
    model: Path,
    recipe: str,
    calibration: Path,
    evaluation: Path,
    tokens: int,
    windows: int,
    task: Path | None,
    folder: Path,
) -> dict[str, Any]:
    """One row."""
    tokenizer = Tokenizer.load(model)
    original = canonicalise(capture(model).program)
    env = Env(calibration=load_text(calibration, tokenizer, 512, tokens // 512, seed=0), progress=_told)
    passes = Recipe.parse(recipe, Session()).passes if recipe else ()
    done = run_passes(original, passes, env, Cache(folder / "cache"))
    ids = load_text(evaluation, tokenizer, 1024, windows).windows
    found = language({"original": original, "row": done.program}, ids, "original" if recipe else None)["row"]
    figures = {
        "recipe": recipe,
        "bytes": sum(done.program.weights[s.name].nbytes for s in sites(original)),
        "perplexity": str(found.perplexity),
        "kl": str(found.against.kl) if found.against else "",
        "agreement": str(found.against.agreement) if found.against else "",
        "seconds": round(sum(t.seconds - t.checks_seconds for t in done.timings)),
        "peak_rss_bytes": max((t.peak_rss_bytes for t in done.timings), default=0),
        "load_average": os.getloadavg()[0],
    }
    if task is not None:
        figures["right"] = "".join("01"[r] for r in choices(done.program, load_items(task), tokenizer).right_normalised)
    return figures


def _told(items: Iterable[Any], label: Any) -> Iterator[Any]:
    """Each item, and to stderr what its label says where that changes."""
    for i, item in enumerate(items):
        yield item
        if callable(label):
            print(i, label(), file=sys.stderr, flush=True)


def _table(rows: dict[str, Any]) -> Table:
    """A line for each row. Accuracy: by log-probability per character, and against the original."""
    shown = Table(
        "stored", "MB", "perplexity", "KL (nats)", "same top token", "accuracy, paired", "minutes", "peak RSS, GB"
    )
    original = rows.get("original", {}).get("right")
    for name, row in rows.items():
        cells = (f"{row['bytes'] / 1e6:.1f}", row["perplexity"], row["kl"], row["agreement"])
        cost = (f"{row['seconds'] / 60:.1f}", f"{row['peak_rss_bytes'] / 1e9:.2f}")
        shown.add_row(name, *cells, _accuracy(row.get("right"), original), *cost)
    return shown


def _accuracy(right: str | None, original: str | None) -> str:
    if not right:
        return ""
    own, theirs = ([r == "1" for r in x or right] for x in (right, original))
    return f"{mean([float(r) for r in own])}, {paired(own, theirs).difference}"


if __name__ == "__main__":
    typer.run(main)
