"""`make demo`: a real small model through the whole line, on the command line, and one table of what came of it.

Each step is a `drawplate` command, printed before it runs, so that every line can be repeated by hand.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

DATA = Path(os.environ.get("DRAWPLATE_DATA", "build/data"))
MODEL = DATA / "smollm2-135m-instruct" / "ungridded"
OUT = Path("build/demo")
RECIPES = ("fp32", "8da8w", "meta-8da4w", "bf16")
TIMED = RECIPES[:3]  # on x86 the runtime has no bf16 linears worth the name, so bf16 is weighed and not timed
PROMPT = "What is a drawplate used for? Answer in one sentence."


def drawplate(*arguments: object) -> Any:
    """Run a command with --json; its bars and notes go to the terminal."""
    words = ["drawplate", *map(str, arguments)]
    print(f"\n$ {shlex.join(words)}", file=sys.stderr, flush=True)
    command = [str(Path(sys.executable).with_name("drawplate")), *words[1:], "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, env={**os.environ, "OMP_NUM_THREADS": THREADS})
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout)


THREADS = str(len(os.sched_getaffinity(0)))


def main() -> None:
    start = time.perf_counter()
    sizes = {}
    for recipe in RECIPES:
        check = "--verify" if recipe in TIMED else "--no-verify"
        made = drawplate("compile", MODEL, "--recipe", recipe, "--out", OUT / recipe, "--overwrite", check)
        rows = made["manifest"]["bytes"]
        sizes[recipe] = sum(r["bytes"] for r in rows if r["file"].endswith(".pte"))
    recipes = [word for recipe in TIMED[1:] for word in ("--recipe", recipe)]
    text, task = DATA / "text/evaluation.txt", f"piqa={DATA / 'piqa/validation.jsonl'}"
    measured = drawplate("eval", MODEL, *recipes, "--text", text, "--windows", 6, "--task", task, "--limit", 300)
    speed = drawplate(
        "bench", *(OUT / r for r in TIMED), "--baseline", OUT / "fp32", "--threads", THREADS, "--rounds", 3
    )
    said = drawplate("run", OUT / "meta-8da4w", "--prompt", PROMPT, "--max-tokens", 40)
    console = Console(width=150)
    console.print(table(sizes, measured, {row["name"]: row for row in speed["rows"]}), highlight=False)
    console.print(f"{PROMPT}\n{said['text']}\n", highlight=False, markup=False)
    console.print(
        "SmolLM2-135M-Instruct, its channels permuted so that no weight stands on a 4-bit grid (scripts/ungrid.py). "
        "Quality is the Program's; each artifact was held against its Program. "
        f"{THREADS} threads; the whole demo took {(time.perf_counter() - start) / 60:.1f} minutes.",
        highlight=False,
    )


def table(sizes: dict[str, int], measured: Any, speed: dict[str, Any]) -> Table:
    """One row per recipe. sizes: bytes of the .pte."""
    columns = ("recipe", ".pte (MB)", "perplexity", "KL (nats)", "same top token", "PIQA (300)", "decode (tokens/s)")
    shown = Table(*columns, "prefill (tokens/s)", "first token (ms)", "peak RSS (MB)", title="drawplate: demo")
    for recipe, size in sizes.items():
        cells = [recipe, f"{size / 1e6:.1f}"]
        if recipe in speed:
            name = MODEL.name if recipe == "fp32" else recipe
            words, choices = measured["text"][name], measured["tasks"]["piqa"][name]
            against, row = words["against"], speed[recipe]
            accuracy = choices["accuracy_normalised"]
            cells += [f"{words['perplexity']['value']:.2f}"]
            cells += [f"{against['kl']['value']:.4f}" if against else "0"]
            cells += [f"{100 * against['agreement']['value']:.1f} %" if against else "100 %"]
            cells += [f"{100 * accuracy['value']:.1f} ± {100 * accuracy['error']:.1f} %"]
            cells += [f"{row[key]['median']:.1f}" for key in ("decode_rate", "prefill_rate")]
            cells += [f"{1e3 * row['first_seconds']['median']:.0f}", f"{row['peak_bytes']['median'] / 1e6:.0f}"]
        shown.add_row(*cells)
    return shown


if __name__ == "__main__":
    main()
