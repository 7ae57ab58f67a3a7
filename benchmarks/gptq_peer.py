"""GPTQ here beside GPTQModel's: the same model, tokens, bits and groups; quality on the same text, time and memory.

    DRAWPLATE_PEERS=peers python benchmarks/gptq_peer.py MODEL --calibration FILE --evaluation FILE --scheme 4:64:sym

GPTQModel is no dependency: install it and what it lacks (`pip install --no-deps --target peers gptqmodel ..`), and name
the folder in DRAWPLATE_PEERS. Each row is a process of its own. What GPTQModel stored is taken as it reads it back
itself, so both are measured in one Program. The vocabulary stays in floating point.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

from drawplate.analysis.sites import sites
from drawplate.calibration import Calibration, load_text
from drawplate.canonical import canonicalise
from drawplate.capture import capture
from drawplate.evaluation import language
from drawplate.passbase import Env
from drawplate.plugins.manager import Session
from drawplate.program import Program
from drawplate.recipe import Recipe
from drawplate.runner import run_passes
from drawplate.tokens import Tokenizer

LENGTH = 512
ROWS = ("rounded", "GPTQ here", "GPTQ here, mse", "GPTQModel")


@dataclass(frozen=True)
class Scheme:
    """Of the linears. A shorter last group is as GPTQ's files have it."""

    bits: int
    group: int
    symmetric: bool

    @classmethod
    def parse(cls, text: str) -> Scheme:
        """`4:64:sym` or `2:64:asym`."""
        bits, group, kind = text.split(":")
        return cls(int(bits), int(group), {"sym": True, "asym": False}[kind])

    def stored(self, more: str) -> str:
        """As a pass."""
        block = f"bits={self.bits},block=1x{self.group},ragged=true,symmetric={str(self.symmetric).lower()}"
        return f"quantize-weights{{{block},scale=bf16{more}}}"


def main(
    model: Path,
    calibration: Annotated[Path, typer.Option(help="Text that is read.")],
    evaluation: Annotated[Path, typer.Option(help="Text that is measured, none of the other.")],
    scheme: Annotated[list[str], typer.Option(metavar="BITS:GROUP:sym|asym", help="Repeatable.")],
    tokens: Annotated[int, typer.Option(help="Of calibration.")] = 16384,
    damping: Annotated[float, typer.Option(help="As a share of the second moments' mean; GPTQModel's own.")] = 0.05,
    windows: Annotated[int, typer.Option(help="Of 1024 tokens.")] = 4,
    threads: int = 1,
    row: Annotated[str | None, typer.Option(hidden=True)] = None,
    into: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure and print."""
    torch.set_num_threads(threads)
    tokenizer = Tokenizer.load(model)
    text = load_text(calibration, tokenizer, LENGTH, tokens // LENGTH, seed=0)
    if row is not None and into is not None:
        measure(model, row, Scheme.parse(scheme[0]), damping, text, into)
        return
    original = canonicalise(capture(model).program)
    ids = load_text(evaluation, tokenizer, 1024, windows).windows
    shown = Table("scheme", "stored", "perplexity", "KL (nats)", "same top token", "seconds", "CPU s", "peak RSS, GB")
    for kind in scheme:
        for name in ROWS:
            with tempfile.TemporaryDirectory() as folder:
                arguments = [model, "--calibration", calibration, "--evaluation", evaluation, "--scheme", kind]
                settings = ["--tokens", tokens, "--damping", damping, "--threads", threads]
                asked = [*arguments, *settings, "--row", name, "--into", folder]
                subprocess.run([sys.executable, __file__, *map(str, asked)], check=True)
                cost = json.loads((Path(folder) / "cost.json").read_text())
                stored = with_weights(original, load_file(Path(folder) / "weights.safetensors"))
            found = language({"original": original, "row": stored}, ids, "original")["row"]
            assert found.against is not None
            quality = (str(found.perplexity), str(found.against.kl), str(found.against.agreement))
            seconds = (f"{cost[k]:.0f}" for k in ("wall", "cpu"))
            shown.add_row(kind, name, *quality, *seconds, f"{cost['rss'] / 1e9:.2f}")
    Console(width=150).print(shown, highlight=False)


def measure(model: Path, row: str, scheme: Scheme, damping: float, text: Calibration, into: Path) -> None:
    """In a process of its own: the weights as they read back, and what that took, loading the model included."""
    wall = time.perf_counter()
    weights = peer(model, scheme, damping, text) if row == "GPTQModel" else ours(model, row, scheme, damping, text)
    used = resource.getrusage(resource.RUSAGE_SELF)
    cost = {"wall": time.perf_counter() - wall, "cpu": used.ru_utime + used.ru_stime, "rss": used.ru_maxrss * 1024}
    save_file(weights, into / "weights.safetensors")
    (into / "cost.json").write_text(json.dumps(cost))


def ours(model: Path, row: str, scheme: Scheme, damping: float, text: Calibration) -> dict[str, torch.Tensor]:
    """By the pass."""
    read = f",method=gptq,tokens={text.windows.numel()},damping={damping}" if row != "rounded" else ""
    more = f"{read},range=mse" if row.endswith("mse") else read
    program = canonicalise(capture(model).program)
    passes = Recipe.parse(scheme.stored(more), Session()).passes
    done = run_passes(program, passes, Env(calibration=text)).program
    return {site.name: done.weights[site.name].dequantize() for site in sites(done) if site.role == "linear"}


def peer(model: Path, scheme: Scheme, damping: float, text: Calibration) -> dict[str, torch.Tensor]:
    """By GPTQModel, in float32, and read back by it, which it does in float16."""
    sys.path.append(os.environ["DRAWPLATE_PEERS"])
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # on two cores it asks for one, and then for two of that one
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    asked: Any = {"bits": scheme.bits, "group_size": scheme.group, "sym": scheme.symmetric}
    config = QuantizeConfig(**asked, desc_act=False, damp_percent=damping)
    loaded = GPTQModel.load(str(model), config, dtype=torch.float32, device="cpu")
    rows = [{"input_ids": w.tolist(), "attention_mask": [1] * len(w)} for w in text.windows]
    loaded.quantize(rows, batch_size=1, backend=BACKEND.GPTQ_TORCH)
    with tempfile.TemporaryDirectory() as folder:
        loaded.save(folder)
        again = GPTQModel.load(folder, backend=BACKEND.GPTQ_TORCH, dtype=torch.float16, device="cpu")
    named = again.model.named_modules()
    return {
        f"{name}.weight": module.dequantize_weight().T.float().contiguous()
        for name, module in named
        if hasattr(module, "qweight")
    }


def with_weights(program: Program, weights: dict[str, torch.Tensor]) -> Program:
    """The program with these in the place of its own. All of its linears but the head's are among them."""
    asked = {site.name for site in sites(program) if site.role == "linear"}
    assert weights.keys() == asked, f"{len(weights)} weights came, {len(asked)} are there"
    return replace(program, weights={**program.weights, **weights})


if __name__ == "__main__":
    typer.run(main)
