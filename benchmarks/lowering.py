"""What compiling costs by depth: wall and CPU time of each stage and the peak memory, in a process for each depth.

    python benchmarks/lowering.py MODEL --layers 4 --layers 8 --layers 16 --layers 30
    python benchmarks/lowering.py MODEL --layers 4 --stock        # and ExecuTorch's own route on the same program
    python benchmarks/lowering.py MODEL --recipe 'allocate-bits{budget=5bpw},.. -> xnnpack' --calibration FILE

The stages are capture (loading, torch.export, canonical form), passes (the recipe's, without the measurements that the
runner makes around them; one that reads a text is a stage of its own), proofs (the same passes with them, only if asked
for) and lowering: Program to .pte. The last columns of the table are the time per layer, from the difference of two
depths, which a straight line has constant, and the peak memory beside the float weights.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from drawplate.isolate import isolated

TRUNCATE = Path(__file__).with_name("truncate.py")


@contextmanager
def timed(into: dict[str, Any], stage: str) -> Iterator[None]:
    """Wall and CPU seconds of a stage, child processes (flatc) included; more of the same stage is added."""
    wall, cpu = time.perf_counter(), _cpu()
    yield
    before = into.get(stage, {"wall_seconds": 0.0, "cpu_seconds": 0.0})
    into[stage] = {
        "wall_seconds": before["wall_seconds"] + time.perf_counter() - wall,
        "cpu_seconds": before["cpu_seconds"] + _cpu() - cpu,
        "peak_bytes": _peak(),
    }


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def one(request: Mapping[str, Any]) -> dict[str, Any]:
    """In a child: compile one model, stage by stage; the figures of each."""
    import drawplate.recipe
    from drawplate.calibration import load_text
    from drawplate.canonical import canonicalise
    from drawplate.capture import capture
    from drawplate.passbase import Env
    from drawplate.plugins.manager import Session
    from drawplate.rehearsal import facts_that_hold
    from drawplate.runner import run_passes
    from drawplate.schedule import schedule
    from drawplate.tokens import Tokenizer

    model, context = Path(request["model"]), request["context"]
    found: dict[str, Any] = {}
    session = Session()
    loaded = drawplate.recipe.Recipe.load(request["recipe"], session)
    backend = loaded.make_backend(session)
    steps = [replace(p, context=context) if p.name == "add-kv-cache" else p for p in loaded.passes]  # type: ignore[type-var]
    with timed(found, "capture"):
        captured = capture(model)
        program = canonicalise(captured.program)
    passes = [*steps, *backend.legalise()]
    order = schedule(passes, facts_that_hold(program, passes), loaded.pinned).order
    found["weight_bytes"] = sum(w.nbytes for w in program.weights.values())
    env = Env(target=backend.target, original=program)
    if request["calibration"]:
        text = load_text(request["calibration"], Tokenizer.load(model), 512, request["tokens"] // 512, loaded.seed)
        env = replace(env, calibration=text)
    if request["proofs"]:
        with timed(found, "proofs"):
            run_passes(program, order, env)
    for step in order:
        with timed(found, step.name if step.slow else "passes"):
            program = step.run(program, env)
    with tempfile.TemporaryDirectory() as folder:
        if request["stock"]:
            sys.path.insert(0, str(Path(__file__).parent))
            from stock_route import expand, lower

            with timed(found, "lowering"):
                data = lower(expand(program), context)
                Path(folder, "model.pte").write_bytes(data)
        else:
            with timed(found, "lowering"):
                backend.emit(program, Path(folder), captured.assets)
        found["file_bytes"] = Path(folder, "model.pte").stat().st_size
    return found


def main(
    model: Path,
    layers: Annotated[list[int] | None, typer.Option(help="Depths to measure.")] = None,
    recipe: str = "meta-8da4w",
    context: int = 512,
    calibration: Annotated[Path | None, typer.Option(help="Text that passes may read.")] = None,
    tokens: Annotated[int, typer.Option(help="Of that text.")] = 16384,
    stock: Annotated[bool, typer.Option(help="ExecuTorch's own route instead of ours.")] = False,
    proofs: Annotated[bool, typer.Option(help="Also time the passes with their measurements.")] = False,
    scratch: Annotated[Path, typer.Option(help="Where truncated models are kept.")] = Path("build/bench"),
    out: Annotated[Path | None, typer.Option(help="JSON with all figures.")] = None,
) -> None:
    """Measure each depth and print the table."""
    rows: dict[int, Any] = {}
    for depth in layers or [4, 8, 16, 30]:
        cut = scratch / f"{model.parent.name}-{depth}"
        subprocess.run(
            [sys.executable, str(TRUNCATE), str(model), str(cut), str(depth)], check=True, capture_output=True
        )
        request = {"model": str(cut), "recipe": recipe, "context": context, "stock": stock, "proofs": proofs}
        request |= {"calibration": str(calibration) if calibration else "", "tokens": tokens}
        rows[depth] = isolated(f"{__file__}:one", request, timeout=6 * 3600)
        Console(stderr=True).print(f"{depth} layers: lowering {rows[depth]['lowering']['cpu_seconds']:.1f} CPU s")
    Console(width=160).print(table(rows, "stock route" if stock else "drawplate"))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(rows, indent=1))


def table(rows: dict[int, Any], title: str) -> Table:
    """One line per depth."""
    stages = [s for s in next(iter(rows.values())) if not s.endswith("bytes")]
    columns = [f"{s} CPU s (wall)" for s in stages]
    shown = Table("layers", *columns, "peak RSS MB", "file MB", "CPU s per layer", "beside weights MB", title=title)
    before: tuple[int, float] | None = None
    for depth, row in rows.items():
        times = [f"{row[s]['cpu_seconds']:.1f} ({row[s]['wall_seconds']:.1f})" for s in stages]
        total = sum(row[s]["cpu_seconds"] for s in stages)
        slope = "" if before is None else f"{(total - before[1]) / (depth - before[0]):.3f}"
        before = depth, total
        peak = max(row[s]["peak_bytes"] for s in stages)
        beside = f"{(peak - row['weight_bytes']) / 1e6:.0f}"
        shown.add_row(str(depth), *times, f"{peak / 1e6:.0f}", f"{row['file_bytes'] / 1e6:.1f}", slope, beside)
    return shown


if __name__ == "__main__":
    typer.run(main)
