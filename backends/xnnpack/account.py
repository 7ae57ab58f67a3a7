"""What every byte of a .pte is for."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drawplate.backendbase import ByteRow, Role, encoding_of
from drawplate.backends.xnnpack.executorch_adapter import Layout
from drawplate.errors import BackendError
from drawplate.program import Program

PROGRAM, GRAPHS, CONSTANTS, PADDING = "program", "delegate graphs", "constants", "padding"


@dataclass(frozen=True)
class Span:
    """Bytes [start, end) of the file, and what they are: a weight's name or one of the names above."""

    start: int
    end: int
    name: str


def account(path: Path, layout: Layout, program: Program, stored: Iterable[tuple[str, Tensor]]) -> tuple[ByteRow, ...]:
    """Rows that add up to the file's size. stored: the tensors of plain constants, with the weights' names."""
    spans = [Span(0, layout.program, PROGRAM)]
    spans += [Span(s, s + n, GRAPHS) for s, n in (layout.segments[i] for i in layout.delegates)]
    segment, offsets = layout.constant
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if offsets and segment < len(layout.segments):
            spans += _constants(data, layout, stored)
    spans += [Span(s, s + n, owner(key, program.weights)) for key, (s, n) in _named(layout)]
    spans = [s if s.name in (*program.weights, PROGRAM, GRAPHS) else Span(s.start, s.end, CONSTANTS) for s in spans]
    totals = dict.fromkeys((*program.weights, PROGRAM, GRAPHS, CONSTANTS, PADDING), 0)
    place = 0
    for span in sorted(spans, key=lambda s: (s.start, -s.end)):
        totals[PADDING] += max(0, span.start - place)
        totals[span.name] += max(0, span.end - max(place, span.start))
        place = max(place, span.end)
    totals[PADDING] += layout.size - place
    return tuple(
        ByteRow(name, _role(name, program), _encoding(name, program), path.name, count)
        for name, count in totals.items()
    )


def owner(key: str, weights: Mapping[str, Any]) -> str:
    """The weight that a named constant belongs to; CONSTANTS for the numbers that regions bring along."""
    for name in (key, key.removesuffix(".codes"), key.removesuffix(".scale")):
        if name in weights:
            return name
    return CONSTANTS


def _named(layout: Layout) -> list[tuple[str, tuple[int, int]]]:
    return [(key, layout.segments[s]) for key, s in sorted(layout.named.items())]


def _constants(data: Any, layout: Layout, stored: Iterable[tuple[str, Tensor]]) -> list[Span]:
    """Where each tensor of the outer program lies, found by its bytes; what else is there are constants."""
    segment, offsets = layout.constant
    start, size = layout.segments[segment]
    places = sorted({start + o for o in offsets})
    spans = [Span(a, b, CONSTANTS) for a, b in zip(places, [*places[1:], start + size], strict=True)]
    left = set(places)
    for name, tensor in stored:
        raw = tensor.contiguous().flatten().view(torch.uint8).numpy()
        found = next((p for p in places if data[p : p + len(raw)] == raw.tobytes()), None)
        if found is None:
            raise BackendError(f"the bytes of '{name}' are not in the file", why="they were written as something else")
        left.discard(found)
        spans = [s for s in spans if s.start != found] + [Span(found, found + len(raw), name)]
    return [s for s in spans if s.end > s.start]


def _role(name: str, program: Program) -> Role:
    if name in program.weights:
        return "weight"
    return "padding" if name == PADDING else "graph"


def _encoding(name: str, program: Program) -> str:
    return encoding_of(program.weights[name]) if name in program.weights else ""
