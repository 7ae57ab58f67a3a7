"""GPTQ folders, as programs whose weights stay integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from drawplate.backends.gptq.config import FORMATS, Scheme, Stored, format_of
from drawplate.backends.gptq.packing import SCALES, Parts, dequantized, from_parts, plain_order, shapes
from drawplate.checkpoints.reader import FolderReader, Reading
from drawplate.encoding import QTensor
from drawplate.errors import CaptureError

BELONGS = "check that config.json belongs to these weights"


@dataclass(frozen=True)
class GptqReader(FolderReader):
    """Folders of GPTQModel, AutoGPTQ, Optimum and of our own backend; versions 1 and 2.

    A weight whose inputs are grouped in another order (act-order's g_idx) has no Encoding here and becomes floating
    point, with a note.
    """

    name: ClassVar[str] = "gptq"

    def knows(self, quantization: Mapping[str, Any]) -> bool:
        method = quantization.get("quant_method") or quantization.get("method")
        return method == "gptq" and format_of(quantization) in FORMATS

    def weight(self, read: Reading, name: str, shape: tuple[int, ...]) -> QTensor | Tensor | None:
        module, _, last = name.rpartition(".")
        if last != "weight" or f"{module}.qweight" not in read.tensors:
            return None
        stored = Stored.read(read.quantization, f"{read.folder / 'config.json'}: quantization_config")
        scheme = stored.of(module)
        parts = _parts(read, module, scheme, shape, act_order=stored.act_order)
        group = -1 if scheme.group > shape[1] else scheme.group
        why = _not_an_encoding(parts, group)
        if why:
            read.notes.append(f"{name} became floating point: {why}")
            return dequantized(parts, scheme.bits, stored.version)
        return from_parts(parts, scheme.bits, group, stored.version, symmetric=scheme.symmetric)


def _parts(read: Reading, module: str, scheme: Scheme, shape: tuple[int, ...], *, act_order: bool) -> Parts:
    """The four tensors of a module, in the shapes that its scheme gives them. Raises CaptureError."""
    expected = shapes(shape, scheme.bits, scheme.group)
    order = f"{module}.g_idx"
    found: dict[str, Tensor] = {}
    for key, want in expected.items():
        tensor = f"{module}.{key}"
        if key == "g_idx" and order not in read.tensors and not act_order:
            found[key] = plain_order(shape[1], scheme.group)  # a file that never reorders may leave it out
            continue
        found[key] = read.tensors[tensor]
        if tuple(found[key].shape) != want:
            raise CaptureError(
                f"{tensor!r} is {list(found[key].shape)}, and {list(want)} by quantization_config",
                where=read.tensors.file(tensor),
                why=f"{scheme.bits} bits in groups of {scheme.group} for a weight {list(shape)}",
                fix=BELONGS,
            )
    _check_kinds(read, module, found)
    groups = expected["scales"][0]
    low, high = int(found["g_idx"].min()), int(found["g_idx"].max())
    if low < 0 or high >= groups:
        raise CaptureError(
            f"{order!r} names group {low if low < 0 else high}, and there are {groups}",
            where=read.tensors.file(order),
            fix=BELONGS,
        )
    return Parts(**found)


def _check_kinds(read: Reading, module: str, found: Mapping[str, Tensor]) -> None:
    """Raises CaptureError unless integers are integers of 32 bits and scales are numbers."""
    for key, tensor in found.items():
        kinds = tuple(SCALES) if key == "scales" else (torch.int32,)
        if tensor.dtype not in kinds:
            raise CaptureError(
                f"'{module}.{key}' is {tensor.dtype}, not {' or '.join(map(str, kinds))}".replace("torch.", ""),
                where=read.tensors.file(f"{module}.{key}"),
                fix=BELONGS,
            )
    if not bool(torch.isfinite(found["scales"]).all()):
        raise CaptureError(
            f"'{module}.scales' has elements that are inf or nan",
            where=read.tensors.file(f"{module}.scales"),
            fix="download it again: it may be damaged",
        )


def _not_an_encoding(parts: Parts, group: int) -> str:
    """Why no Encoding says how it is stored; empty if one does."""
    if not torch.equal(parts.g_idx, plain_order(len(parts.g_idx), group)):
        return "its inputs are grouped in another order (act-order)"
    return "" if bool((parts.scales > 0).all()) else "a scale of it is not above 0"
