"""Program -> model.onnx, model.onnx.data and what onnxruntime-genai reads beside them, and the account of it."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from drawplate.backendbase import ByteRow, Emission, encoding_of, state_rows
from drawplate.backends.onnx.genai import NO_END, config
from drawplate.backends.onnx.graph import Written
from drawplate.backends.onnx.lower import lower
from drawplate.backends.onnx.runner import CONFIG, DATA, MODEL
from drawplate.program import Program
from drawplate.sources.source import Assets

if TYPE_CHECKING:
    from drawplate.backends.onnx.backend import OnnxBackend

GRAPH, PADDING = "graph", "padding"


def emit(program: Program, into: Path, assets: Assets, options: OnnxBackend) -> Emission:
    """Both files, genai_config.json if the program has a cache, and the model's own files."""
    written = lower(program, options)
    written.write(into)
    files = [into / MODEL, into / DATA]
    if program.state:
        (into / CONFIG).write_text(config(program, assets, options), encoding="utf-8")
        files.append(into / CONFIG)
    files += [Path(shutil.copyfile(file, into / file.name)) for file in assets.files]
    return Emission(
        tuple(files), account(program, assets, options, written), notes=tuple(notes(program, assets, options))
    )


def account(program: Program, assets: Assets, options: OnnxBackend, written: Written) -> tuple[ByteRow, ...]:
    """Rows that add up to the files' sizes, from shapes and encodings alone."""
    taken: Counter[str] = Counter()
    for stored in written.stored:
        taken[stored.owner] += stored.nbytes
    rows = [ByteRow(name, "weight", encoding_of(w), DATA, taken[name]) for name, w in program.weights.items()]
    rows += [
        ByteRow(GRAPH, "graph", "", MODEL, len(written.model)),
        ByteRow(PADDING, "padding", "", DATA, written.size - taken.total()),
        *state_rows(program),
    ]
    if program.state:
        rows.append(ByteRow(CONFIG, "asset", "", CONFIG, len(config(program, assets, options).encode())))
    return (*rows, *(ByteRow(f.name, "asset", "", f.name, f.stat().st_size) for f in assets.files))


def notes(program: Program, assets: Assets, options: OnnxBackend) -> Iterator[str]:
    """What a user should know besides the numbers."""
    if program.state:
        yield "onnxruntime-genai generates from this folder"
    if program.state and not assets.eos:
        yield f"the model names no end token, and onnxruntime-genai wants one: it stops at token {NO_END}"
    if options.accuracy_level > 1:
        yield (
            f"accuracy_level={options.accuracy_level}: the runtime may round what its linears read, which the program "
            "does not say; 'eval' of the artifact measures it"
        )
