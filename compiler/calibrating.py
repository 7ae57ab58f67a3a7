"""This host as a device: what a runtime makes of memory and arithmetic, measured on a model with random weights.

Decoding reads each weight once per token and a prompt multiplies with each once per token, so the rates of both are
the device's: bytes moved times tokens per second, and multiply-adds times tokens per second.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from drawplate.api import compile as compile_model
from drawplate.bench import BenchReport, bench
from drawplate.canonical import canonicalise
from drawplate.capture import Captured, capture
from drawplate.device import Device, Rates
from drawplate.isolate import Subject
from drawplate.passbase import Env, Progress
from drawplate.plugins.manager import Session
from drawplate.progress import quiet
from drawplate.recipe import Recipe
from drawplate.rehearsal import rehearse
from drawplate.roofline import bytes_moved, works
from drawplate.sources.huggingface import assets_of
from drawplate.sources.outline import read_config, untrained

MODEL = "calibration"
"""The shipped configuration: larger than caches in 4 bits, and made in seconds."""
RECIPES = {"float": "fp32", "integer": "meta-8da4w"}


@dataclass(frozen=True)
class Measured:
    """device: as measured. read_rate: bytes per second that as many threads read from memory with nothing to compute,
    the most that decoding could reach."""

    device: Device
    read_rate: float


def calibrate(
    name: str,
    *,
    threads: int,
    rounds: int = 3,
    config: str | Path = MODEL,
    recipes: Mapping[str, str] = RECIPES,
    session: Session | None = None,
    progress: Progress = quiet,
) -> Measured:
    """Compile a model with random weights by a recipe for each kind of kernel, run both in their backend's runtime on
    this host, interleaved, and work out the rates. Raises DrawplateError."""
    session = session or Session()
    _, read = read_config(config)
    torch.manual_seed(0)
    captured = Captured(capture(untrained(read), name=name).program, assets_of(read))
    with tempfile.TemporaryDirectory() as folder:
        subjects = []
        for kind, recipe in recipes.items():
            artifact = compile_model(captured, recipe, out=Path(folder, kind), session=session, cache=False)
            opener = type(artifact.backend(session))
            subjects.append(Subject.of(artifact.folder, opener, kind, artifact.model_files))
        report = bench(subjects, threads=threads, rounds=rounds, progress=progress)
    rates = {kind: _rates(report, kind, captured, recipe, session) for kind, recipe in recipes.items()}
    source = f"measured here: {report.machine}, {threads} threads, {rounds} rounds of {', '.join(recipes.values())}"
    return Measured(Device(name, source, rates["float"], rates["integer"]), report.read_rate.median)


def _rates(report: BenchReport, kind: str, captured: Captured, recipe: str, session: Session) -> Rates:
    """What the tokens per second of one artifact say."""
    loaded = Recipe.load(recipe, session)
    backend = loaded.make_backend(session)
    passes = (*loaded.passes, *backend.legalise())
    program = rehearse(canonicalise(captured.program), passes, Env(target=backend.target)).program
    assert program is not None
    row, middle = report.row(kind), report.prompt + report.new_tokens // 2
    macs = sum(w.multiply_adds for _, w in works(program, tokens=report.prompt, context=report.prompt))
    read = bytes_moved(program, context=middle) * row.decode_rate.median
    return Rates(float(f"{read:.3g}"), float(f"{macs / report.prompt * row.prefill_rate.median:.3g}"))
