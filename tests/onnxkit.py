"""The way from a small program through the onnx backend to numbers out of the real runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from xnnkit import CACHED, decoder, fed, passed, relative

from drawplate.backendbase import Emission
from drawplate.backends.onnx.backend import OnnxBackend
from drawplate.backends.onnx.graph import ALIGNMENT
from drawplate.backends.onnx.runner import DATA, MODEL, session
from drawplate.program import Program
from drawplate.runtime import ProgramRunner
from drawplate.sources.source import Assets

END = 96
ASSETS = Assets(bos=1, eos=(END,))
EXACT = 1e-5


def emitted(program: Program, folder: Path, backend: OnnxBackend | None = None) -> Emission:
    """The files in a new folder, of a program that is not refused."""
    backend = backend or OnnxBackend()
    assert backend.refusals(program) == []
    folder.mkdir(parents=True, exist_ok=True)
    return backend.emit(program, folder, ASSETS)


def stored(passes: str, *, tied: bool = True) -> Program:
    """The small decoder with weights stored by these passes, and a cache."""
    return passed(decoder(tied), f"{passes},{CACHED},pack-weights")


def distance(program: Program, folder: Path, lengths: Sequence[int] = (1, 7, 1, 20, 1, 34)) -> float:
    """The largest relative difference of the last logits after pieces of a text, from the program's."""
    pairs = zip(fed(OnnxBackend().open(folder), lengths), fed(ProgramRunner(program), lengths), strict=True)
    return max(relative(a, b) for a, b in pairs)


def called(folder: Path, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """Results of a model without a cache."""
    given = {name: x.numpy() for name, x in inputs.items()}
    return [torch.from_numpy(x) for x in session(folder / MODEL).run(None, given)]


def model(folder: Path) -> Any:
    """The graph as the onnx package reads it, tensors left where they are."""
    import onnx

    return onnx.load(str(folder / MODEL), load_external_data=False)


def tensors(folder: Path) -> dict[str, bytes]:
    """What lies in the file beside, by name."""
    raw, found = (folder / DATA).read_bytes(), {}
    for proto in model(folder).graph.initializer:
        place = {e.key: e.value for e in proto.external_data}
        if place:
            start = int(place["offset"])
            assert start % ALIGNMENT == 0
            found[proto.name] = raw[start : start + int(place["length"])]
    return found
