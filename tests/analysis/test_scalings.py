"""Where factors per channel may go, on many architectures: whatever is found leaves the function alone."""

from __future__ import annotations

import pytest
import torch
from architectures import DECODERS, LAYERS, OTHERS, captured, decoder_inputs

from drawplate.analysis.scalings import Scaling, scalings
from drawplate.analysis.sites import sites
from drawplate.errors import Refusal
from drawplate.probing import run
from drawplate.program import Program
from drawplate.scaling import write_factors
from drawplate.text import parse_program

WHOLE = 4 * LAYERS  # before attention and MLP a norm, before the output and the down-projection a linear
FOUND = {
    "mixtral": 2 * LAYERS, "gemma2-softcap": 3 * LAYERS, "phi": 2 * LAYERS, "gpt-neox": 3 * LAYERS, "gpt2": 3 * LAYERS,
    "olmo2": 2 * LAYERS, "cohere": 3 * LAYERS, "bert": LAYERS, "qwen2-moe": 3 * LAYERS, "qwen3-moe": 2 * LAYERS,
}  # fmt: skip


def found(program: Program) -> list[Scaling]:
    return [s for s in scalings(program) if isinstance(s, Scaling)]


@pytest.mark.parametrize("name", [*DECODERS, *OTHERS])
def test_random_factors_leave_the_function_alone(name: str) -> None:
    program = captured(name)
    all_found = found(program)
    assert len(all_found) == FOUND.get(name, WHOLE)
    editor = program.edit()
    generator = torch.Generator().manual_seed(1)
    for scaling in all_found:
        write_factors(editor, scaling, torch.rand(scaling.count, generator=generator).double() + 0.3)
    after = editor.finish()
    inputs = [x for x, _ in zip(decoder_inputs(2, 9), program.inputs, strict=False)]
    expected, given = (run(p, inputs, dtype=torch.float64)[0] for p in (program, after))
    torch.testing.assert_close(given, expected, rtol=1e-9, atol=1e-9)
    for scaling in all_found:
        for share in scaling.columns:
            assert not torch.equal(after.weights[share.weight], program.weights[share.weight])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [*DECODERS, *OTHERS])
def test_every_linear_of_the_body_is_scaled_once_or_refused(name: str) -> None:
    scaled = [share.weight for s in found(captured(name)) for share in s.columns]
    refused = [r.site for r in scalings(captured(name)) if isinstance(r, Refusal)]
    body = [s.name for s in sites(captured(name)) if s.role == "linear"]
    assert sorted([*scaled, *refused]) == sorted(body)


def test_grouped_heads_share_their_values_factors() -> None:
    scaling = next(s for s in found(captured("llama")) if s.name == "model.layers.0.self_attn.o_proj.weight")
    assert scaling.count == 16  # two key-value heads of 8, and six query heads
    assert scaling.columns[0].factor.tolist() == 3 * [*range(8)] + 3 * [*range(8, 16)]
    (writer,) = scaling.writers
    assert writer.factor.tolist() == [*range(16)]


def test_half_of_a_fused_projection_takes_factors() -> None:
    scaling = next(s for s in found(captured("phi3")) if s.name == "model.layers.0.mlp.down_proj.weight")
    (writer,) = scaling.writers
    assert writer.weight == "model.layers.0.mlp.gate_up_proj.weight"
    assert writer.factor.tolist() == [-1] * 80 + [*range(80)]


@pytest.mark.parametrize(
    ("between", "why"),
    [
        ("%a = aten.relu(%u)", ""),
        ("%r = aten.relu(%g)\n  %a = aten.mul.Tensor(%r, %u)", ""),
        ("%a = aten.mul.Tensor(%u, %u)", "down (aten.linear): not scaled: no factor goes through 'mul'"),
        ("%r = aten.silu(%g)\n  %a = aten.div.Tensor(%u, %r)", ""),
        ("%a = aten.silu(%u)", "down (aten.linear): not scaled: no factor goes through 'silu'"),
        (
            "%r = aten.silu(%u)\n  %a = aten.mul.Tensor(%r, %u)",
            "down (aten.linear): not scaled: no factor goes through 'silu'",
        ),
        ("%n = aten.relu(%g)\n  %r = aten.add.Tensor(%n, %u)\n  %a = aten.relu(%r)", ""),
    ],
)
def test_what_factors_go_through(between: str, why: str) -> None:
    program = parse_program(f"""// drawplate text 1
program one(%x: f32[b, 32]) where 1 <= b <= 64 {{
  weight @gate : f32[48, 32] = seed(1)
  weight @up : f32[48, 32] = seed(2)
  weight @down : f32[32, 48] = seed(3)
  %g = aten.linear(%x, @gate)  // gate
  %u = aten.linear(%x, @up)  // up
  {between}
  %h = aten.linear(%a, @down)  // down
  %y = aten.silu(%h)
  %z = aten.add.Tensor(%y, %x)
  return %z
}}""")
    last = list(scalings(program))[-1]
    assert ([str(last)] if isinstance(last, Refusal) else []) == ([why] if why else [])
