"""What the backend refuses, as text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from xnnkit import CACHED, decoder, emitted, passed, preset, traced

from drawplate.backends.xnnpack import executorch_adapter
from drawplate.backends.xnnpack.backend import XnnpackBackend
from drawplate.errors import BackendError, Refusal, RuntimeMissing
from drawplate.program import Program

LINE = "modeling_llama.py"
MENU = "'i4 block 1x32 sym scale bf16', 'i4 block 1x-1 sym scale f32', 'i8 block 1x-1 sym scale f32'"
FIXED_TABLE = "decoder table of 3 bits"


def refused(program: Program) -> list[Refusal]:
    return XnnpackBackend().check(program)


def test_weights_without_rounded_activations() -> None:
    found = refused(passed(decoder(), f"quantize-weights{{where=body,bits=8,block=1x-1}},{CACHED}"))
    assert len(found) == 14
    assert found[0].site == "model.layers.0.self_attn.q_proj"
    assert found[0].why == (
        "its weight is 'i8 block 1x-1 sym scale f32' but its input is not rounded; XNNPACK has no weight-only kernel"
    )
    assert found[0].fix == "add quantize-activations{bits=8}"
    assert LINE in found[0].source


@pytest.mark.parametrize(
    ("options", "encoding"),
    [
        ("bits=3,block=1x32,scale=bf16", "i3 block 1x32 sym scale bf16"),
        ("bits=8,block=1x32,scale=bf16", "i8 block 1x32 sym scale bf16"),
        ("bits=4,block=1x16,scale=bf16", "i4 block 1x16 sym scale bf16"),
        ("bits=4,block=1x32,scale=f32", "i4 block 1x32 sym scale f32"),
        ("bits=4,block=1x32,scale=bf16,symmetric=false", "i4 block 1x32 asym scale bf16"),
    ],
)
def test_encodings_without_a_kernel(options: str, encoding: str) -> None:
    found = refused(passed(decoder(), f"quantize-weights{{where=body,{options}}},quantize-activations{{bits=8}}"))
    assert {(r.why, r.fix) for r in found} == {
        (f"XNNPACK has no kernel for '{encoding}'", f"store it as one of {MENU}, or as float")
    }


def test_a_table_without_a_kernel() -> None:
    (found,) = refused(passed(decoder(False), "quantize-embedding{bits=3,block=1x-1}"))
    assert str(found).startswith(
        "model.embed_tokens (aten.embedding): there is no embedding kernel for 'i3 block 1x-1 sym scale f32'"
    )
    assert found.fix.endswith("or as float")


def test_activations_of_four_bits() -> None:
    program = passed(decoder(), "quantize-weights{where=body,bits=8,block=1x-1},quantize-activations{bits=4}")
    assert {r.why for r in refused(program)} == {
        "XNNPACK rounds activations as 'i8 block -1 asym scale f32 dynamic' (here 'i4 block -1 asym scale f32 dynamic')"
    }


def test_a_good_program() -> None:
    assert refused(preset("meta-8da4w")) == []
    assert refused(decoder()) == []


def test_another_executorch() -> None:
    executorch_adapter.check_version("1.4.9")
    with pytest.raises(RuntimeMissing) as error:
        executorch_adapter.check_version("1.5.0")
    assert str(error.value) == (
        "ExecuTorch 1.5.0 is not known to the xnnpack backend\n"
        "  why:   it uses names that ExecuTorch changes without notice, as they are in 1.4\n"
        "  do:    pip install 'executorch==1.4.*'"
    )


def test_an_operator_without_a_kernel(tmp_path: Path) -> None:
    class Fancy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.det(x)

    with pytest.raises(BackendError, match=r"ExecuTorch has no kernel for aten::_linalg_det\S*\n  where: small\n"):
        emitted(traced(Fancy(), torch.randn(3, 3)), tmp_path)


def test_what_does_not_generate(tmp_path: Path) -> None:
    class Double(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    emitted(traced(Double(), torch.randn(3)), tmp_path)
    with pytest.raises(BackendError) as error:
        XnnpackBackend().open(tmp_path)
    assert "it was compiled without a cache" in str(error.value)


def test_threads_are_set_before_anything_is_loaded(tmp_path: Path) -> None:
    emitted(preset("fp32"), tmp_path)  # which loads what it wrote
    with pytest.raises(BackendError, match="set 7 threads before anything is opened, or in a process of its own"):
        XnnpackBackend().open(tmp_path, threads=7)


def test_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"there is no \.pte"):
        XnnpackBackend().open(tmp_path)


def test_a_damaged_artifact(tmp_path: Path) -> None:
    (tmp_path / "model.pte").write_bytes(b"not a program" * 100)
    with pytest.raises(BackendError, match="ExecuTorch does not load the file"):
        XnnpackBackend().open(tmp_path)


def test_options_without_sense() -> None:
    with pytest.raises(ValueError, match="0 tokens and 1 rows at once: at least one of each"):
        XnnpackBackend(tokens=0)
