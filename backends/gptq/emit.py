"""Program -> folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from drawplate.analysis.sites import sites
from drawplate.backendbase import Emission
from drawplate.backends.gptq.config import Scheme, quantization_config
from drawplate.backends.gptq.packing import shapes, stored_zeros, to_parts
from drawplate.checkpoints.folder import Folder, as_json, float_config, float_groups, folder
from drawplate.checkpoints.matching import Match, match
from drawplate.checkpoints.shards import Group, Item, shards
from drawplate.encoding import SCALE_DTYPES, QTensor
from drawplate.errors import BackendError
from drawplate.program import Program

if TYPE_CHECKING:
    from drawplate.backends.gptq.backend import GptqBackend
    from drawplate.sources.source import Assets

CARD = """---
library_name: transformers
tags:
- gptq
---

# {name}

Weights in GPTQ's layout, version {version}, written by drawplate: {summary}.
Matrices that stay floating point are {floats}, norms and biases float32.
"""


def layout(program: Program, assets: Assets, options: GptqBackend) -> Folder:
    """What will be written, known from shapes and encodings alone. Raises BackendError."""
    found = matched(program, assets)
    stored = {name: w for name, w in program.weights.items() if isinstance(w, QTensor)}
    version = version_of(stored, options)
    floats = float_groups(found, options.floats)
    groups = [
        _group(found, name, stored[name], version) if name in stored else floats[name]
        for name in [*found.names, *found.filled()]
    ]
    config = float_config(found.config, options.floats)
    texts = {}
    if stored:
        schemes = {found.module(name): Scheme.of(w.encoding) for name, w in stored.items()}
        plain = [found.module(s.name) for s in sites(program) if s.role == "linear" and s.name not in stored]
        quantization = quantization_config(schemes, plain, found.architecture.head, version)
        config["quantization_config"] = quantization
        texts["quantize_config.json"] = as_json(quantization)
    kinds = sorted({str(w.encoding) for w in stored.values()})
    card = CARD.format(
        name=program.name,
        version=version,
        summary=f"{len(stored)} linears as {', '.join(kinds)}" if stored else "none are stored as integers",
        floats=config["dtype"],
    )
    return folder(shards(groups, options.shard), found, assets, config, texts, card)


def emit(program: Program, into: Path, assets: Assets, options: GptqBackend) -> Emission:
    """Write the folder, one weight in memory at a time beyond the program. Raises BackendError."""
    made = layout(program, assets, options)
    stored = {name: w for name, w in program.weights.items() if isinstance(w, QTensor)}
    version = version_of(stored, options)
    if version == 1:
        _refuse_wrapping(stored)
    files = made.write(into)
    return Emission(files, made.rows(), notes=tuple(_notes(stored, version, options)))


def matched(program: Program, assets: Assets) -> Match:
    """The program as its architecture has it. Raises BackendError."""
    found = match(program, assets)
    refusals = found.refusals if isinstance(found, Match) else (found,)
    if not isinstance(found, Match) or refusals:
        raise BackendError("the program is not what a loader builds", why="\n".join(map(str, refusals)))
    return found


def version_of(stored: Mapping[str, QTensor], options: GptqBackend) -> int:
    """The layout's version: what was asked for, else 1 where all weights are symmetric."""
    if options.version != "auto":
        return int(options.version)
    return 1 if all(w.encoding.symmetric for w in stored.values()) else 2


def _group(found: Match, name: str, weight: QTensor, version: int) -> Group:
    """One weight's four tensors."""
    module, encoding = found.module(name), weight.encoding
    scale = SCALE_DTYPES[encoding.scale]
    items = tuple(
        Item(f"{module}.{key}", scale if key == "scales" else torch.int32, shape)
        for key, shape in shapes(weight.shape, encoding.bits, encoding.block[1]).items()
    )
    return Group(name, str(encoding), items, lambda: to_parts(weight, version).named(module))


def _refuse_wrapping(stored: Mapping[str, QTensor]) -> None:
    wrapped = {n: int((stored_zeros(w, 1) < 0).sum()) for n, w in stored.items()}
    worst = [name for name, count in wrapped.items() if count]
    if worst:
        raise BackendError(
            "version 1 of the layout cannot hold all zero points",
            where=", ".join(worst[:3]) + ", .." * (len(worst) > 3),
            why=f"it stores zero points less one, and {sum(wrapped.values())} of them are 0: they would wrap",
            fix="write version=2, or leave it to version=auto",
        )


def _notes(stored: Mapping[str, QTensor], version: int, options: GptqBackend) -> list[str]:
    if options.version != "auto" or version == 1:
        return []
    zeros = sum(int((stored_zeros(w, 1) < 0).sum()) for w in stored.values())
    why = f"some weights are asymmetric, and version 1 has no zero point of 0, which {zeros} groups have"
    return [f"version 2 of the layout (gptq_v2): {why}; GPTQModel takes such weights in version 1 only from itself"]
