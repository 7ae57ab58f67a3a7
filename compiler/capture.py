"""A model source -> torch.export -> Program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from drawplate.errors import CaptureError
from drawplate.program import Dim, Program
from drawplate.provenance import first_line, line_of_error
from drawplate.sources.opening import located, open_source, reader_of
from drawplate.sources.quiet import quiet_export
from drawplate.sources.source import Assets, Source
from drawplate.unlift import unlift

if TYPE_CHECKING:
    from drawplate.plugins.manager import Session

__all__ = ["Assets", "Captured", "capture"]


@dataclass(frozen=True)
class Captured:
    """The program as torch.export saw it (canonicalise comes next; a reader's is canonical), and what came with the
    model. notes: what the user should know of how it was read."""

    program: Program
    assets: Assets
    notes: tuple[str, ...] = ()


def capture(
    model: str | Path | nn.Module,
    *,
    example_inputs: Sequence[Tensor] | Mapping[str, Tensor] | None = None,
    dynamic: Mapping[str, Mapping[int, Dim]] | None = None,
    dtype: torch.dtype = torch.float32,
    name: str | None = None,
    session: Session | None = None,
) -> Captured:
    """Trace a model once, without a cache, with symbolic batch and length.

    model: a Hugging Face folder or hub name, a GGUF file, a transformers model, or any nn.Module with example_inputs.
    Where its weights are stored in a format that a plugin reads, they stay so stored (see drawplate_readers).
    example_inputs, dynamic: for an nn.Module: one tensor per argument of forward, and which axes are not fixed.
    dtype: what the weights are loaded in; an nn.Module is taken in the dtype it has.
    A decoder becomes (input_ids i64[b, s], position_ids i64[b, s]) -> logits [b, s, vocabulary], where position_ids
    count up by one in each row. An encoder becomes (input_ids, attention_mask) -> its first output [b, s, hidden].
    session: whose readers are asked; None: all that are installed. Weights are shared with the model. Raises
    CaptureError.
    """
    place, name = located(model, name)
    if isinstance(place, Path) and (reader := reader_of(place, session)):
        return reader.read(place, name or (place.resolve().stem if place.is_file() else place.resolve().name))
    source = open_source(place, example_inputs=example_inputs, dynamic=dynamic or {}, dtype=dtype, name=name)
    return Captured(unlifted(source), source.assets)


def unlifted(source: Source) -> Program:
    """The program of a model that is ready to be traced. Raises CaptureError."""
    return unlift(export(source), source)


def export(source: Source) -> ExportedProgram:
    """torch.export, non-strict (2 to 4 times faster than strict, same graph). Raises CaptureError with the line."""
    dims = {d.name: torch.export.Dim(d.name, min=d.low, max=d.high) for d in source.dims}
    shapes = {key: {axis: dims[d.name] for axis, d in source.dynamic.get(key, {}).items()} for key in source.inputs}
    try:
        with torch.no_grad(), quiet_export():
            return torch.export.export(
                source.module, tuple(source.inputs.values()), dynamic_shapes=shapes, strict=False
            )
    except Exception as error:
        raise CaptureError(
            f"torch.export refuses {source.name!r}: {_said(error)}",
            where=line_of_error(error),
            why="the graph must be the same for every input: no branch or shape may depend on a value",
            fix="compute both sides and choose with torch.where, or fix the axis that varies",
        ) from error


def _said(error: Exception) -> str:
    """The first line, and of broken constraints also which; without torch's own advice."""
    lines = [line.strip() for line in str(error).splitlines()]
    details = [line.removeprefix("- ").partition(". ")[0] for line in lines if line.startswith("- ")]
    return " ".join([first_line(error).partition(" For more information")[0], *details[:3]])
