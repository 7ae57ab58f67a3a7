"""What allocating bits is worth: uniform and allocated at the same bytes, rounded and by GPTQ, rotated and not, to
whole weights and to bands of them.

    python benchmarks/allocation.py MODEL --calibration FILE --evaluation FILE --uniform 3:4 --task piqa.jsonl

Each --uniform makes one budget: what these bits take for the linears of the blocks and for the vocabulary, in groups of
64 with 16-bit scales and zero points of their own. All rows of a budget take those bytes or less. A row that was
measured already is kept.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from drawplate.analysis.sites import sites
from drawplate.calibration import Calibration, load_text
from drawplate.canonical import canonicalise
from drawplate.capture import capture
from drawplate.encoding import Encoding
from drawplate.evaluate.choices import Item, choices, load_items
from drawplate.evaluate.statistics import mean, paired
from drawplate.evaluation import language
from drawplate.passbase import Env
from drawplate.plugins.manager import Session
from drawplate.program import Program
from drawplate.recipe import Recipe
from drawplate.runner import Outcome, run_passes
from drawplate.tokens import Tokenizer

MENU = "bits=2x3x4x5x6x8,group=1x64,symmetric=false,range=mse"
STORED = "bits={},block=1x64,symmetric=false,scale=bf16,range=mse"
TOKENS = 8192  # of calibration: what GPTQ reads, and what is measured on
BEFORE = {
    "": "",
    ", rotated": "fold-norms,rotate",
    " in bands": "split-bands",
    " in bands, rotated": "fold-norms,rotate,split-bands",
}


@dataclass(frozen=True)
class Way:
    """before: what is done to the floating-point program. measured: rows that share what allocate-bits measures."""

    before: str
    recipe: str
    measured: str = ""


def ways(body: int, vocabulary: int, budget: float) -> dict[str, Way]:
    """What is compared, by name. budget: bits per weight."""
    around = STORED.format(vocabulary)
    table = f"quantize-embedding{{{around}}},quantize-weights{{where=head,{around}}}"
    uniform = f"{table},quantize-weights{{{STORED.format(body)},tokens={TOKENS},method=%s}}"
    found = {
        "uniform, rounded": Way("", uniform % "round"),
        "uniform, GPTQ": Way("", uniform % "gptq"),
        "uniform, GPTQ, rotated": Way(BEFORE[", rotated"], uniform % "gptq"),
    }
    allocated = f"allocate-bits{{budget={math.ceil(budget * 1e4) / 1e4}bpw,{MENU},tokens={TOKENS},method=%s,cost=%s}}"
    # What picoLLM says of itself: bits across and within weights, to the cost of a text, and no compensation
    loss = Way(BEFORE[" in bands"], allocated % ("round", "loss"), "picollm")
    found["picoLLM's way: in bands, to the loss, rounded"] = loss
    for where, before in BEFORE.items():
        file = "-".join(["gptq", *where.replace(",", "").split()])
        found[f"allocated{where}, GPTQ"] = Way(before, allocated % ("gptq", "kl"), file)
    found["allocated, rounded"] = Way("", allocated % ("round", "kl"), "round")
    return found


def main(
    model: Path,
    calibration: Annotated[Path, typer.Option(help="Text that GPTQ and sensitivities are measured on.")],
    evaluation: Annotated[Path, typer.Option(help="Text that is measured, none of the other.")],
    uniform: Annotated[list[str] | None, typer.Option(metavar="BODY:VOCABULARY", help="Bits; repeatable.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Rows to measure; all.")] = None,
    windows: Annotated[int, typer.Option(help="Of 1024 tokens.")] = 4,
    task: Annotated[Path | None, typer.Option(help="Choice task.")] = None,
    judged: Annotated[list[str] | None, typer.Option(help="Rows that are asked the task; all.")] = None,
    items: Annotated[int | None, typer.Option(help="First so many of it; all.")] = None,
    out: Annotated[Path, typer.Option(help="JSON with every row, added to what is there.")] = Path(
        "build/bench/allocation.json"
    ),
) -> None:
    """Measure and print."""
    captured = capture(model)
    program, tokenizer = canonicalise(captured.program), Tokenizer.load(model)
    bench = Bench(
        program,
        tokenizer,
        load_text(calibration, tokenizer, 512, 64, 0),
        load_text(evaluation, tokenizer, 1024, windows).windows,
        load_items(task)[:items] if task else (),
        judged,
        out.with_suffix(""),
    )
    rows: list[dict[str, Any]] = json.loads(out.read_text()) if out.is_file() else []
    for budget in ["original", *(uniform or ["2:3", "3:3", "3:4", "4:4"])]:
        for name, way in wanted(program, budget).items():
            if only and name not in only and budget != "original":
                continue
            row = next((r for r in rows if (r["budget"], r["row"]) == (budget, name)), None)
            rows = [r for r in rows if r is not row]
            rows.append(bench.add(row or {"budget": budget, "row": name}, way))
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(rows, indent=1))
    Console(width=160).print(table(rows), highlight=False)


def wanted(program: Program, budget: str) -> dict[str, Way]:
    """What is to be measured of a budget."""
    if budget == "original":
        return {"original": Way("", "")}
    body, vocabulary = map(int, budget.split(":"))
    return ways(body, vocabulary, uniform_rate(program, body, vocabulary))


def uniform_rate(program: Program, body: int, vocabulary: int) -> float:
    """Bits per weight, scales and zero points included."""
    encodings = {bits: Encoding(bits, (1, 64), symmetric=False, scale="bf16") for bits in (body, vocabulary)}
    found = sites(program)
    size = sum(encodings[body if s.role == "linear" else vocabulary].nbytes(s.shape) for s in found)
    return 8 * size / sum(math.prod(s.shape) for s in found)


@dataclass(frozen=True)
class Bench:
    """A model, and what rows are measured on."""

    program: Program
    tokenizer: Tokenizer
    text: Calibration
    ids: torch.Tensor
    items: Sequence[Item]
    judged: Sequence[str] | None
    folder: Path  # where what was measured is kept
    _floats: dict[str, Program] = field(default_factory=dict)

    def add(self, row: dict[str, Any], way: Way) -> dict[str, Any]:
        """The row with what it lacks."""
        asked = self.items if row["row"] in {"original", *(self.judged or [row["row"]])} else ()
        if "perplexity" in row and (not asked or len(row.get("right", "")) == len(asked)):
            return row
        start = time.perf_counter()
        done = self.made(way)
        if "perplexity" not in row:
            row = {**row, "recipe": way.recipe, "seconds": round(time.perf_counter() - start), **self.spoken(done)}
        if asked:
            row["right"] = "".join("01"[r] for r in choices(done, asked, self.tokenizer).right_normalised)
        return row

    def made(self, way: Way) -> Program:
        """The program that this way stores. Rows of several budgets share what is measured."""
        if way.before not in self._floats:
            self._floats[way.before] = self.run(self.program, way.before).program
        known = self.folder / f"{way.measured}.json"
        again = f",measured={known}" if way.measured and known.is_file() else ""
        outcome = self.run(self._floats[way.before], way.recipe[:-1] + again + "}" if again else way.recipe)
        for record in outcome.records:
            if record.name == "allocation" and way.measured and not again:
                self.folder.mkdir(parents=True, exist_ok=True)
                record.write(known)
        return outcome.program

    def run(self, program: Program, recipe: str) -> Outcome:
        """The passes of the recipe; none, if it is empty."""
        passes = Recipe.parse(recipe, Session()).passes if recipe else ()
        return run_passes(program, passes, Env(calibration=self.text))

    def spoken(self, program: Program) -> dict[str, Any]:
        """On the evaluation text, and the size of what is stored."""
        models = {"original": self.program, "row": program}
        found = language(models, self.ids, None if program is self.program else "original")["row"]
        size = sum(program.weights[s.name].nbytes for s in sites(program))
        against = found.against
        return {
            "bpw": 8 * size / sum(math.prod(s.shape) for s in sites(program)),
            "perplexity": str(found.perplexity),
            "kl": str(against.kl) if against else "",
            "agreement": str(against.agreement) if against else "",
        }


def table(rows: list[dict[str, Any]]) -> Table:
    """Budgets, and in each what was measured. Accuracy: by log-probability per character, and against the original."""
    columns = (
        "uniform bits",
        "stored",
        "bits per weight",
        "perplexity",
        "KL (nats)",
        "same top token",
        "accuracy, paired",
    )
    shown = Table(*columns, "seconds")
    original = next((r.get("right") for r in rows if r["row"] == "original"), None)
    for row in sorted(rows, key=lambda r: r["budget"]):
        cells = (row["row"], f"{row['bpw']:.3f}", row["perplexity"], row["kl"], row["agreement"])
        shown.add_row(row["budget"], *cells, accuracy(row.get("right"), original), str(row["seconds"]))
    return shown


def accuracy(right: str | None, original: str | None) -> str:
    """`0.62 ± 0.01, -0.03 ± 0.01`"""
    if not right:
        return ""
    own = mean([float(r) for r in right])
    if original is None or len(original) != len(right):
        return str(own)
    return f"{own}, {paired([r == '1' for r in right], [r == '1' for r in original]).difference}"


if __name__ == "__main__":
    typer.run(main)
