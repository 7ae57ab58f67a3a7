"""Decoders through the passes into a .pte, in the stock runtime, against the Program."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from xnnkit import (
    CACHED,
    CONTEXT,
    agree,
    cached,
    decoder,
    emitted,
    fed,
    passed,
    preset,
    relative,
    steps,
    well_predicted,
)

from drawplate.backends.xnnpack.backend import XnnpackBackend
from drawplate.errors import EvaluationError
from drawplate.program import Program
from drawplate.runtime import ProgramRunner
from drawplate.testing import byte_reasons

PIECES = (1, 7, 1, 20, 1, 34)  # 64 tokens: a prompt, single tokens, the whole context
EXACT = 1e-5

GROUPS = "quantize-weights{where=body,bits=4,block=1x32,scale=bf16}"
QUANTISED = {
    "groups of 64": ("quantize-embedding{bits=8},quantize-weights{where=body,bits=4,block=1x64,scale=bf16}", False),
    "4 bits per channel": ("quantize-weights{where=all,bits=4,block=1x-1,scale=f32}", False),
    "4-bit table in groups": (f"quantize-embedding{{bits=4,block=1x32}},{GROUPS}", False),
    "2-bit table": (f"quantize-embedding{{bits=2,block=1x-1}},{GROUPS}", False),
    "4-bit tied table": (
        "quantize-embedding{bits=4,block=1x-1},quantize-weights{where=all,bits=4,block=1x-1,scale=f32}",
        True,
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pte")


@pytest.mark.parametrize("name", ["meta-8da4w", "8da8w", "fp32"])
def test_presets(name: str, folder: Path) -> None:
    program, out = preset(name), folder / name
    emission = emitted(program, out)
    assert byte_reasons(emission, out, program) == []
    assert emission.fallbacks == ()
    well_predicted(program, emission)
    agree(program, out, PIECES)
    pieces = fed(XnnpackBackend().open(out), PIECES)[-1]
    (whole,) = fed(XnnpackBackend().open(out), [sum(PIECES)])
    assert relative(pieces, whole) < EXACT
    saved = next(n for n in emission.notes if "in the file once" in n)
    assert saved.startswith("'model.embed_tokens.weight' is in the file once")
    table = next(r.bytes for r in emission.bytes if r.name == "model.embed_tokens.weight")
    assert table == program.weights["model.embed_tokens.weight"].nbytes


def test_bf16_runs_and_says_what_it_costs(folder: Path) -> None:
    program, out = preset("bf16"), folder / "bf16"
    emission = emitted(program, out)
    assert byte_reasons(emission, out, program) == []
    well_predicted(program, emission)
    linears = next(f for f in emission.fallbacks if f.op == "aten.linear")
    assert linears.count == 9
    assert linears.share_bytes > 0.9
    assert linears.share_macs > 0.75
    assert "bfloat16" in linears.why
    table = next(r for r in emission.bytes if r.name == "model.embed_tokens.weight")
    assert table.bytes == program.weights["model.embed_tokens.weight"].nbytes
    assert max(steps(program, out, (1, 5, 1))) < 0.05


@pytest.mark.parametrize("case", QUANTISED)
def test_every_entry_of_the_menu(case: str, folder: Path) -> None:
    passes, tied = QUANTISED[case]
    program = passed(decoder(tied), f"{passes},quantize-activations{{bits=8}},{CACHED},pack-weights")
    assert XnnpackBackend().check(program) == []
    out = folder / case.replace(" ", "-")
    emission = emitted(program, out)
    assert byte_reasons(emission, out, program) == []
    agree(program, out, (1, 7, 1, 20))
    twice = [n for n in emission.notes if "in the file twice" in n]
    assert bool(twice) == (case == "4-bit tied table")


ARCHITECTURES = {
    "qwen2": "a bias behind query, key and value",
    "qwen3": "norms of queries and keys, and heads wider than the model divides",
    "gemma": "gelu with tanh, one plus the norm's weight, heads of 8",
    "mistral": "a sliding window in every layer",
    "gemma3": "a window in some layers, two kinds of rotary table",
    "gpt-neox": "rotation of a part of each head, layer norms, attention and MLP side by side",
    "cohere": "rotation of pairs",
    "phi3": "query, key and value in one linear; gate and up in one",
    "gpt2": "learned positions, no rotation",
    "stablelm": "untied head, part of each head turned",
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name: str, tmp_path: Path) -> None:
    program = cached(name)
    assert XnnpackBackend().check(program) == []
    emission = emitted(program, tmp_path)
    assert byte_reasons(emission, tmp_path, program) == []
    assert [f for f in emission.fallbacks if f.share_macs or f.share_bytes] == []
    agree(program, tmp_path, PIECES)


def test_experts_fall_back_and_are_reported(tmp_path: Path) -> None:
    """Mixtral chooses experts by index, which XNNPACK cannot; the rest is delegated and the result is the same."""
    program = cached("mixtral")
    emission = emitted(program, tmp_path)
    assert {"aten.topk", "aten.index.Tensor"} <= {f.op for f in emission.fallbacks}
    agree(program, tmp_path, (1, 7, 1))


def test_pieces_no_longer_than_asked(tmp_path: Path) -> None:
    """tokens=8: memory for eight positions; a longer prompt is fed in pieces, with the same result."""
    program = preset("fp32")
    emitted(program, tmp_path, XnnpackBackend(tokens=8))
    runner = XnnpackBackend().open(tmp_path)
    (short,) = fed(runner, [30])
    (whole,) = fed(ProgramRunner(program), [30])
    assert relative(short, whole) < EXACT


def test_a_full_context(folder: Path) -> None:
    program, out = preset("fp32"), folder / "full"
    emitted(program, out)
    runner = XnnpackBackend().open(out)
    assert runner.context == CONTEXT
    fed(runner, [CONTEXT])
    with pytest.raises(EvaluationError, match="the context is full: 64 tokens were fed and 1 more do not fit"):
        runner.step(torch.tensor([1]))


def test_going_back(folder: Path) -> None:
    """rewind() forgets what came after, as Rewindable promises."""
    program: Program = preset("fp32")
    out = folder / "rewind"
    emitted(program, out)
    runner = XnnpackBackend().open(out)
    ids = torch.arange(12)
    runner.step(ids[:8])
    first = runner.step(ids[8:])
    runner.rewind(8)  # type: ignore[attr-defined]
    assert torch.equal(runner.step(ids[8:]), first)


def test_the_same_bytes_twice(folder: Path, tmp_path: Path) -> None:
    emitted(preset("meta-8da4w"), folder / "meta-8da4w")
    emitted(preset("meta-8da4w"), tmp_path)
    assert (tmp_path / "model.pte").read_bytes() == (folder / "meta-8da4w" / "model.pte").read_bytes()
