"""What rotations are worth: perplexity and distance to the original under several schemes, by how the model is turned.

    python benchmarks/rotations.py MODEL --calibration FILE --evaluation FILE

Each learned kind learns once, in a process of its own whose time and peak memory are its, and leaves its matrices;
`cayley` learns under each scheme's own encodings. Then each scheme is applied to the model as it is, with its norms
folded and nothing turned, and turned each way, with plain rounding, and measured on the same windows. What was learned
or measured before is not done again: delete the folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from drawplate.calibration import load_text
from drawplate.canonical import canonicalise
from drawplate.capture import capture
from drawplate.evaluation import LanguageReport, language
from drawplate.passbase import Env
from drawplate.plugins.manager import Session
from drawplate.program import Program, rounded
from drawplate.recipe import Recipe
from drawplate.runner import run_passes
from drawplate.tokens import Tokenizer

VOCABULARY = "quantize-embedding{bits=8,block=1x-1},quantize-weights{where=head,bits=8,block=1x-1}"
WINDOW, WINDOWS = 512, 128  # of calibration text, as `drawplate compile` cuts it


@dataclass(frozen=True)
class Scheme:
    """passes: what rounds, in the order to run. learn: the options under which cayley learns. online: is r4 shown?"""

    passes: str
    learn: str
    online: bool = False


# Where activations are encoded before the head is stored, the head reads them in floating point.
SCHEMES = {
    "8da4w": Scheme(
        f"quantize-weights{{bits=4,block=1x32,scale=bf16}},{VOCABULARY},quantize-activations{{bits=8}}",
        "weights=4,group=1x32,activations=8",
    ),
    "w4a4": Scheme(
        f"quantize-weights{{bits=4,block=1x64}},quantize-activations{{bits=4}},{VOCABULARY}",
        "weights=4,group=1x64,activations=4",
        online=True,
    ),
    "w3": Scheme(f"quantize-weights{{bits=3,block=1x64}},{VOCABULARY}", "weights=3,group=1x64,activations=16"),
}
METHODS = ("none", "folded", "hadamard", "kurtosis", "whip", "cayley")
PLAIN, LEARNED = ("none", "folded"), ("kurtosis", "whip", "cayley")
TOGETHER = 3  # models that are measured beside the original at once: about 0.6 GB each


def main(
    model: Path,
    calibration: Annotated[Path, typer.Option()],
    evaluation: Annotated[Path, typer.Option()],
    scheme: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(SCHEMES)}; all.")] = None,
    method: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(METHODS)}; all.")] = None,
    windows: Annotated[int, typer.Option(help="Of 1024 tokens of the evaluation text.")] = 4,
    steps: Annotated[int | None, typer.Option(help="That cayley learns for; its own default.")] = None,
    threads: int = os.cpu_count() or 1,
    folder: Annotated[Path, typer.Option(help="Where matrices and figures are.")] = Path("build/bench/rotations"),
    learn: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Learn, measure and print."""
    torch.set_num_threads(threads)
    if learn is not None:
        _learn(model, calibration, learn, folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    chosen, methods = scheme or list(SCHEMES), method or list(METHODS)
    for name in dict.fromkeys(_name(m, s) for s in chosen for m in methods if m in LEARNED):
        if not (folder / f"{name}.json").exists():
            options = _options(name, steps)
            command = [sys.executable, __file__, str(model), "--calibration", str(calibration), "--evaluation"]
            command += [str(evaluation), "--threads", str(threads), "--folder", str(folder), "--learn", options]
            subprocess.run(command, check=True)
    program = canonicalise(capture(model).program)
    ids = load_text(evaluation, Tokenizer.load(model), 1024, windows).windows
    rows = [row for s in chosen for row in _measured(program, ids, s, methods, folder)]
    (folder / "table.json").write_text(json.dumps(rows, indent=1))
    Console(width=130).print(_table(rows, evaluation.name, windows), highlight=False)


def _name(method: str, scheme: str) -> str:
    """What is learned: cayley once for each scheme, the others for all."""
    return f"cayley-{scheme}" if method == "cayley" else method


def _options(name: str, steps: int | None) -> str:
    """`whip` or `cayley-w3`, and what follows the kind in a recipe: `cayley-w3:weights=3,..`."""
    kind, _, scheme = name.partition("-")
    options = [SCHEMES[scheme].learn] if scheme else []
    options += [f"steps={steps}"] if scheme and steps else []
    return f"{name}:{','.join([f'kind={kind}', *options])}"


def _learn(model: Path, calibration: Path, what: str, folder: Path) -> None:
    """One kind: its matrices, seconds and peak memory, into the folder."""
    name, _, options = what.partition(":")
    program = canonicalise(capture(model).program)
    text = load_text(calibration, Tokenizer.load(model), WINDOW, WINDOWS, seed=0)
    passes = Recipe.parse(f"fold-norms,rotate{{{options}}}", Session()).passes
    aside = folder / f"{name}.aside"  # a benchmark that was killed goes on here
    aside.mkdir(exist_ok=True)
    env = Env(calibration=text, checkpoints=aside, progress=_told)
    outcome = run_passes(program, passes, env)
    timing = outcome.timings[-1]
    save_file(dict(outcome.records[0].tensors), folder / f"{name}.safetensors")
    figures = {
        "recipe": f"rotate{{{options}}}",
        "seconds": timing.seconds - timing.checks_seconds,
        "peak_rss_bytes": timing.peak_rss_bytes,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
    }
    (folder / f"{name}.json").write_text(json.dumps(figures, indent=1))


def _told(items: Any, label: Any) -> Iterator[Any]:
    """Each item, and to stderr what its label says where that changes."""
    for i, item in enumerate(items):
        yield item
        if callable(label):
            print(i, label(), file=sys.stderr, flush=True)


def _measured(
    program: Program, ids: torch.Tensor, scheme: str, methods: list[str], folder: Path
) -> list[dict[str, Any]]:
    """A row for each way of turning, and one more with r4 where it is shown."""
    ways = [(m, r4) for m in methods for r4 in (False, True) if not r4 or (SCHEMES[scheme].online and m not in PLAIN)]
    files = {way: folder / f"row-{scheme}-{way[0]}{'-r4' * way[1]}.json" for way in ways}
    missing = [way for way in ways if not files[way].exists()]
    for start in range(0, len(missing), TOGETHER):
        made = {way: _made(program, scheme, *way, folder) for way in missing[start : start + TOGETHER]}
        named = {str(way): model for way, model in made.items()}
        reports = language({"original": program, **named}, ids, original="original")
        for way in made:
            row = _row(scheme, way, reports["original"], reports[str(way)], folder)
            files[way].write_text(json.dumps(row, indent=1))
            print(row, file=sys.stderr, flush=True)
    return [json.loads(files[way].read_text()) for way in ways]


def _made(program: Program, scheme: str, method: str, r4: bool, folder: Path) -> Program:
    """The program turned and then rounded."""
    file = folder / f"{_name(method, scheme)}.safetensors"
    kind = f"kind=load,path={file}" if method in LEARNED else f"kind={method}"
    turn = {"none": "", "folded": "fold-norms,"}.get(method, f"fold-norms,rotate{{{kind},r4={str(r4).lower()}}},")
    for pass_ in Recipe.parse(turn + SCHEMES[scheme].passes, Session()).passes:
        program = rounded(pass_.run(program, Env()))  # as the runner does, without its checks
    return program


def _row(
    scheme: str, way: tuple[str, bool], original: LanguageReport, report: LanguageReport, folder: Path
) -> dict[str, Any]:
    method, r4 = way
    assert report.against is not None
    row: dict[str, Any] = {"scheme": scheme, "method": method + " + r4" * r4}
    row |= {"original": str(original.perplexity), "perplexity": str(report.perplexity)}
    row |= {"kl": str(report.against.kl), "agreement": str(report.against.agreement)}
    if method in LEARNED:
        row |= json.loads((folder / f"{_name(method, scheme)}.json").read_text())
    return row


def _table(rows: list[dict[str, Any]], text: str, windows: int) -> Table:
    title = f"{windows} windows of 1024 tokens of {text}; the original: perplexity {rows[0]['original']}"
    shown = Table("scheme", "turned", "perplexity", "KL", "top-1", "learned in s", "peak RSS GB", title=title)
    for row in rows:
        cost = (f"{row['seconds']:.0f}", f"{row['peak_rss_bytes'] / 1e9:.1f}") if "seconds" in row else ("", "")
        shown.add_row(row["scheme"], row["method"], row["perplexity"], row["kl"], row["agreement"], *cost)
    return shown


if __name__ == "__main__":
    typer.run(main)
