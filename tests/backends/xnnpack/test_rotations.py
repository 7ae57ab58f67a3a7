"""Rotations that the delegate computes: in the stock runtime, in decoders, and those that it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from xnnkit import CACHED, agree, called, decoder, emitted, passed, relative, well_predicted

from drawplate.backends.xnnpack import executorch_adapter as executorch
from drawplate.backends.xnnpack.backend import XnnpackBackend
from drawplate.backends.xnnpack.cost import multiply_adds
from drawplate.backends.xnnpack.form import form
from drawplate.backends.xnnpack.last_rows import TakeLastRow
from drawplate.canonical.match import aten
from drawplate.hadamard import hadamard
from drawplate.passbase import Env
from drawplate.program import Program
from drawplate.text import parse_program

HADAMARD = torch.ops.drawplate.hadamard.default
INT4 = "quantize-weights{where=body,bits=4,block=1x32,scale=bf16},quantize-activations{bits=8}"
WHOLE = [(n, n) for n in (64, 576, 1536, 2048, 3584, 8192)]
BLOCKS = [(1536, 512), (1536, 128), (1536, 12), (576, 64), (40, 1)]


def program(inputs: Mapping[str, str], lines: Mapping[str, str], results: str) -> Program:
    """name -> type, "name : type" -> call."""
    given = ", ".join(f"%{name}: {kind}" for name, kind in inputs.items())
    dims = ", ".join(f"1 <= {d} <= 64" for d in "bs" if any(f"{d}," in kind for kind in inputs.values()))
    body = "".join(f"  %{name} = {call}\n" for name, call in lines.items())
    return parse_program(f"// drawplate text 1\nprogram turns({given}) where {dims} {{\n{body}  return {results}\n}}\n")


def turned(x: Tensor, block: int) -> Tensor:
    """In float64, by the matrix itself."""
    return (x.double().unflatten(-1, (-1, block)) @ hadamard(block) / block**0.5).flatten(-2)


def with_rotations(of: Program) -> Program:
    """A decoder that turns queries and keys, as [b, heads, s, 16], and the 96 channels in front of each down."""
    editor = of.edit()
    for node in editor.nodes(aten.linear.default, aten.scaled_dot_product_attention.default):
        linear = node.target is aten.linear.default
        if linear and node.args[1].meta["val"].shape[1] != 96:  # type: ignore[union-attr]
            continue
        with editor.graph.inserting_before(node):
            values = [
                editor.call(HADAMARD, x, 96 if linear else 16, like=node) for x in node.args[: 1 if linear else 2]
            ]
        node.args = (*values, *node.args[len(values) :])
    return editor.finish()


def test_every_size_against_the_matrix(tmp_path: Path) -> None:
    """All in one file, since lowering takes seconds."""
    cases = dict(enumerate([*WHOLE, *BLOCKS]))
    kinds = {f"x{i}": f"f32[1, s, {n}]" for i, (n, _) in cases.items()}
    lines = {f"y{i} : f32[1, s, {n}]": f"drawplate.hadamard(%x{i}, {block})" for i, (n, block) in cases.items()}
    emission = emitted(program(kinds, lines, f"[{', '.join(f'%y{i}' for i in cases)}]"), tmp_path)
    assert emission.fallbacks == ()
    assert emission.notes == (f"1 delegates run {len(cases)} operators in XNNPACK",)
    for s in (9, 1, 64):
        given = [torch.randn(1, s, n, generator=torch.Generator().manual_seed(n)) for n, _ in cases.values()]
        for x, y, (_, block) in zip(given, called(tmp_path, *given), cases.values(), strict=True):
            assert y.shape == x.shape
            assert relative(y.double(), turned(x, block)) < 1e-6


def test_the_way_back(tmp_path: Path) -> None:
    """12 = Paley's, which is not its own inverse; 36's is. One matrix serves both ways where it can."""
    lines = {
        "a : f32[1, s, 12]": "drawplate.hadamard(%x, 12, True)",
        "b : f32[1, s, 12]": "drawplate.hadamard(%a, 12)",
        "c : f32[1, s, 36]": "drawplate.hadamard(%z, 36, True)",
        "d : f32[1, s, 36]": "drawplate.hadamard(%c, 36)",
    }
    emitted(program({"x": "f32[1, s, 12]", "z": "f32[1, s, 36]"}, lines, "[%a, %b, %c, %d]"), tmp_path)
    x, z = (torch.randn(1, 5, n, generator=torch.Generator().manual_seed(n)) for n in (12, 36))
    a, b, c, d = called(tmp_path, x, z)
    assert relative(a.double(), x.double() @ hadamard(12).T / 12**0.5) < 1e-6
    assert relative(c.double(), z.double() @ hadamard(36).T / 36**0.5) < 1e-6
    assert relative(b, x) < 1e-6
    assert relative(d, z) < 1e-6
    stored = executorch.read_layout(tmp_path / "model.pte").named
    orders = sorted(key for key in stored if "hadamard" in key)
    symmetric = torch.equal(hadamard(36), hadamard(36).T)
    assert orders == [
        "hadamard.12",
        "hadamard.12.inverse",
        "hadamard.36",
        *([] if symmetric else ["hadamard.36.inverse"]),
    ]


@pytest.mark.parametrize("encoded", [False, True])
def test_a_decoder_with_rotations(encoded: bool, tmp_path: Path) -> None:
    recipe = f"{INT4},{CACHED}" if encoded else CACHED
    rotated = TakeLastRow().run(passed(with_rotations(decoder()), recipe), Env())
    assert XnnpackBackend().refusals(rotated) == []
    emission = emitted(rotated, tmp_path)
    well_predicted(rotated, emission)
    assert emission.fallbacks == ()
    assert emission.notes[0].startswith("3 delegates")  # as without rotations
    stored = executorch.read_layout(tmp_path / "model.pte").named  # one of each size, for all regions
    assert sorted(key for key in stored if "hadamard" in key) == ["hadamard.12", "hadamard.16", "hadamard.8"]
    agree(rotated, tmp_path, (1, 6, 1, 12))


def test_one_row_is_turned_where_one_row_is_used() -> None:
    rotated = TakeLastRow().run(passed(with_rotations(decoder()), CACHED), Env())
    rows = [n.meta["val"].shape[1] for n in rotated.nodes(HADAMARD) if n.args[1] == 96]
    assert [isinstance(n, int) for n in rows] == [False, True]
    assert rows[1] == 1


def test_heads_are_turned_where_they_lie() -> None:
    """The transposes in front of attention go past the rotation, and meet the attention's own."""
    rotated = passed(with_rotations(decoder()), CACHED)
    assert not any(form(rotated).nodes(aten.transpose.int))


def test_the_weight_of_a_rotation_in_a_report() -> None:
    p = program({"x": "f32[1, s, 1536]"}, {"y : f32[1, s, 1536]": "drawplate.hadamard(%x, 1536)"}, "%y")
    (node,) = p.nodes(HADAMARD)
    assert multiply_adds(node) == 1536 * (48 + 32)


def test_what_xnnpack_is_not_given_is_turned_outside(tmp_path: Path) -> None:
    """It can work out one length of a reshape, and is given float32. ExecuTorch's own kernels compute the same, and the
    report says so."""
    kinds = {"x": "f32[b, s, 96]", "h": "bf16[b, 96]"}
    lines = {"y : f32[b, s, 96]": "drawplate.hadamard(%x, 96)", "z : bf16[b, 96]": "drawplate.hadamard(%h, 32)"}
    p = program(kinds, lines, "[%y, %z]")
    assert XnnpackBackend(batch=4).refusals(p) == []
    emission = emitted(p, tmp_path, XnnpackBackend(batch=4))
    assert [(f.op, f.why) for f in emission.fallbacks] == [
        ("drawplate.hadamard", "two of its lengths vary; XNNPACK can work out one"),
        ("drawplate.hadamard", "its type is bfloat16; XNNPACK is given float32"),
    ]
    assert sum(f.share_macs for f in emission.fallbacks) == 1.0
    given = torch.randn(3, 5, 96), torch.randn(3, 96).bfloat16()
    for mine, theirs, bound in zip(called(tmp_path, *given), p.module()(*given), (1e-6, 2e-3), strict=True):
        assert mine.dtype == theirs.dtype
        assert relative(mine, theirs) < bound


@pytest.mark.parametrize(
    ("block", "why"),
    [(92, "no Hadamard matrix of order 92 is known"), (64, "blocks of 64 do not divide 184 channels")],
)
def test_a_rotation_without_a_matrix_is_refused(block: int, why: str) -> None:
    """No program that ends with finish() has one; whatever else comes must not reach the runtime."""
    p = program({"x": "f32[1, s, 184]"}, {"y : f32[1, s, 184]": "drawplate.hadamard(%x, 4)"}, "%y")
    (node,) = p.nodes(HADAMARD)
    node.args = (node.args[0], block)
    (refusal,) = XnnpackBackend().refusals(p)
    assert (
        str(refusal)
        == f"{node.name} (drawplate.hadamard): {why}; turn blocks of a size that is known and divides the channels"
    )
