"""Adapters that are kept at run time, beside linears of integers: the file gives what its Program gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from xnnkit import CACHED, agree, decoder, emitted, passed, well_predicted

from drawplate.analysis.adapters import adapter_weights
from drawplate.backends.xnnpack.backend import XnnpackBackend
from drawplate.backends.xnnpack.widen import narrow
from drawplate.passbase import Env
from drawplate.program import Program

BASE = "quantize-embedding,quantize-weights{block=1x32,scale=bf16},quantize-weights{where=head,bits=8,block=1x-1}"


def trained(program: Program) -> Program:
    """With adapters that do something."""
    random = torch.Generator().manual_seed(2)
    weights = dict(program.weights)
    for name in adapter_weights(program):
        kept = weights[name]
        weights[name] = (torch.randn(kept.shape, generator=random) / 5).to(kept.dtype)  # type: ignore[union-attr]
    return replace(program, weights=MappingProxyType(weights))


def ready(program: Program, merged: bool = True) -> Program:
    program = passed(program, f"merge-linears,{CACHED},pack-weights" if merged else f"{CACHED},pack-weights")
    return XnnpackBackend().legalise()[0].run(program, Env())


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_floating_point_beside_integers(dtype: str, merged: bool, tmp_path: Path) -> None:
    program = trained(passed(decoder(), f"{BASE},quantize-activations,add-lora{{rank=4,dtype={dtype}}}"))
    program = ready(program, merged)
    kept = [w for n, w in program.weights.items() if "lora" in n]
    assert {w.dtype for w in kept} == {torch.bfloat16 if dtype == "bf16" else torch.float32}  # type: ignore[union-attr]
    assert len(kept) == (22 if merged else 28)  # per layer 7 A, of which 3 and 2 are merged, and 7 B
    emission = emitted(program, tmp_path)
    assert emission.fallbacks == ()
    said = [note for note in emission.notes if "are float32 in the file" in note]
    assert said == (
        [f"{len(kept)} weights kept in bfloat16 are float32 in the file, the same numbers: XNNPACK reads no others"]
        if dtype == "bf16"
        else []
    )
    rows = {row.name: row.bytes for row in emission.bytes}
    assert all(rows[n] == 4 * w.shape.numel() for n, w in program.weights.items() if "lora" in n)  # type: ignore[union-attr]
    well_predicted(program, emission)
    agree(program, tmp_path, (3, 1))


@pytest.mark.parametrize("rounded", ["in front", "behind"])
def test_integers_beside_integers(rounded: str, tmp_path: Path) -> None:
    before = ",quantize-activations" if rounded == "in front" else ""
    program = trained(passed(decoder(), f"{BASE}{before},add-lora{{rank=4,dtype=bf16}}"))
    program = ready(passed(program, "fold-lora{method=keep,bits=8}" + (",quantize-activations" if not before else "")))
    kept = {n: w for n, w in program.weights.items() if "lora" in n}
    assert {str(program.encodings[n]) for n in kept} == {"i8 block 1x-1 sym scale f32"}
    emission = emitted(program, tmp_path)
    assert emission.fallbacks == ()
    well_predicted(program, emission)
    agree(program, tmp_path, (3, 1))


def test_what_is_read_in_its_own_dtype_stays() -> None:
    assert narrow(passed(decoder(), "add-lora{rank=4},cast{dtype=bf16}")) == ()
    assert len(narrow(passed(decoder(), "add-lora{rank=4,dtype=bf16}"))) == 28
