"""A cache of integers in the stock runtime: the reference's integers, and the Program's logits, at every length."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from architectures import captured
from torch import Tensor, nn
from xnnkit import CACHED, CONTEXT, agree, decoder, emitted, fed, passed, relative, steps, well_predicted

from drawplate.backends.xnnpack import executorch_adapter as executorch
from drawplate.backends.xnnpack.backend import XnnpackBackend
from drawplate.encoding import dynamic_grid, per_head, quantize
from drawplate.program import Program
from drawplate.runtime import ProgramRunner
from drawplate.testing import byte_reasons
from drawplate.text import parse_program

PIECES = (1, 7, 1, 20, 1, 34)
INTEGERS = f"quantize-cache,{CACHED}"
META = (
    "quantize-embedding{bits=8},quantize-weights{where=body,bits=4,block=1x32,scale=bf16},"
    "quantize-weights{where=head,bits=8,block=1x-1},quantize-activations{bits=8},merge-linears"
)

# heads of any number and width over an embedding; s up to 1100 crosses every block size of the kernel
ATTENTION = """// drawplate text 1
program heads(%input_ids: i64[b, s], %position_ids: i64[b, s]) where 1 <= b <= 4, 1 <= s <= 1100 {{
  weight @embed : f32[97, {model}] = seed(1)
  weight @q : f32[{queries}, {model}] = seed(2)
  weight @k : f32[{keys}, {model}] = seed(3)
  weight @v : f32[{keys}, {model}] = seed(4)
  weight @head : f32[97, {queries}] = seed(5)
  %b = aten.sym_size.int(%input_ids, 0)
  %s = aten.sym_size.int(%input_ids, 1)
  %x = aten.embedding(@embed, %input_ids)
  %q = aten.linear(%x, @q)
  %k = aten.linear(%x, @k)
  %v = aten.linear(%x, @v)
  %qh = aten.reshape(%q, [%b, %s, {heads}, {width}])
  %kh = aten.reshape(%k, [%b, %s, {groups}, {width}])
  %vh = aten.reshape(%v, [%b, %s, {groups}, {width}])
  %qt = aten.transpose.int(%qh, 1, 2)
  %kt = aten.transpose.int(%kh, 1, 2)
  %vt = aten.transpose.int(%vh, 1, 2)
  {mask}
  %ot = aten.transpose.int(%o, 1, 2)
  %or = aten.reshape(%ot, [%b, %s, {queries}])
  %logits = aten.linear(%or, @head)
  return %logits
}}"""
CAUSAL = "%o = aten.scaled_dot_product_attention(%qt, %kt, %vt, None, 0.0, True, enable_gqa=True)"
WINDOW = """%w = drawplate.window_mask(%qt, 50)
  %o = aten.scaled_dot_product_attention(%qt, %kt, %vt, %w, 0.0, False, enable_gqa=True)"""


def heads(heads: int, groups: int, width: int, mask: str = CAUSAL) -> Program:
    """One attention, nothing else."""
    sizes = {"heads": heads, "groups": groups, "width": width, "queries": heads * width, "keys": groups * width}
    return parse_program(ATTENTION.format(model=64, mask=mask, **sizes))


class Rounded(nn.Module):
    """What the outer program does with queries, keys and values."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x: [1, s, 4, 16] -> codes, scales, zero points."""
        ops = torch.ops.quantized_decomposed
        scale, zero = ops.choose_qparams_per_token_asymmetric.default(x, torch.int8)
        codes = ops.quantize_per_token.default(x, scale, zero, -128, 127, torch.int8)
        return codes, scale.to(torch.float32), zero.to(torch.int8)


def close(program: Program, folder: Path, lengths: tuple[int, ...]) -> None:
    """The same but for a code or two of thousands, which the last bit of a float32 sum may carry over."""
    found = sorted(steps(program, folder, lengths))
    assert found[len(found) // 2] < 1e-5, found
    assert found[-1] < 1e-2, found


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Tensor]]:
    executorch.register_operators()
    path = tmp_path_factory.mktemp("kernel") / "model.pte"
    x = torch.zeros(1, 50, 4, 16)
    executorch.lower(torch.export.export(Rounded(), (x,)).module(), (x,), ({},), {}, {}, {}, path)  # type: ignore[arg-type]
    model = executorch.load(path)
    return lambda x: [t.clone() for t in model(x)]


@pytest.mark.parametrize("seed", range(20))
def test_the_reference_is_the_runtime_bit_for_bit(kernel: Callable[..., list[Tensor]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.empty(1, 50, 4, 1).uniform_(-7, 3, generator=generator)  # scales on both sides of the floor
    x = torch.randn(1, 50, 4, 16, generator=generator) * 10**exponents
    x += torch.randn(1, 50, 4, 1, generator=generator) * (seed % 3)
    x[0, :5, 0], x[0, 5:9], x[0, 9:13], x[0, 13:17] = 0, x[0, 5:9].abs(), -x[0, 9:13].abs(), x[0, 13:17] * 1e-38
    x[0, 17:25] = (4 * x[0, 17:25]).round() / 4  # halves and quarters of a step
    codes, scale, zero = kernel(x)
    grid = dynamic_grid(x, per_head())
    assert torch.equal(scale, grid.scale)
    assert torch.equal(zero.float(), grid.zero_point)
    assert torch.equal(codes, quantize(x, grid, per_head()))


@pytest.mark.parametrize(
    ("query_heads", "groups", "width"),
    [(4, 2, 8), (3, 3, 12), (4, 1, 16), (9, 3, 64), (2, 1, 40), (2, 2, 128)],
)
def test_heads_of_every_shape_at_every_length(query_heads: int, groups: int, width: int, tmp_path: Path) -> None:
    """Blocks of the kernel are 32, 64 or 256 queries by 512 keys; from five queries on values are dequantised first."""
    program = passed(heads(query_heads, groups, width), "quantize-cache,add-kv-cache{context=1100},last-position")
    emitted(program, tmp_path, XnnpackBackend(tokens=1100))
    close(program, tmp_path, (1, 2, 4, 5, 191, 1, 192, 110, 5, 1, 100, 1, 1))
    close(program, tmp_path, (800, 1, 31, 200, 1))


def test_a_window(tmp_path: Path) -> None:
    program = passed(heads(4, 2, 16, WINDOW), "quantize-cache,add-kv-cache{context=600},last-position")
    assert XnnpackBackend().check(program) == []
    emitted(program, tmp_path, XnnpackBackend(tokens=600))
    close(program, tmp_path, (1, 70, 1, 5, 1, 500, 1, 1))


def test_a_decoder(tmp_path: Path) -> None:
    program = passed(decoder(), INTEGERS)
    assert XnnpackBackend().check(program) == []
    emission = emitted(program, tmp_path)
    assert byte_reasons(emission, tmp_path, program) == []
    assert emission.fallbacks == ()
    well_predicted(program, emission)
    assert any("llama.custom_quantized_sdpa x2, llama.update_cache x12" in note for note in emission.notes)
    state = sum(r.bytes for r in emission.bytes if r.role == "state")
    assert state == 2 * 2 * CONTEXT * 2 * (16 + 4 + 1)  # layers, keys and values, positions, heads, bytes
    agree(program, tmp_path, PIECES)


@pytest.mark.parametrize("name", ["mistral", "gemma3", "qwen3", "gpt2", "phi3"])
def test_architectures(name: str, tmp_path: Path) -> None:
    program = XnnpackBackend().legalise()[0].run(passed(captured(name), INTEGERS), None)  # type: ignore[arg-type]
    assert XnnpackBackend().check(program) == []
    emission = emitted(program, tmp_path)
    assert [f for f in emission.fallbacks if f.share_macs or f.share_bytes] == []
    agree(program, tmp_path, PIECES)


@pytest.mark.parametrize("turned", ["", "rotate{r1=false,r2=false,r3=true},"], ids=["plain", "R3"])
def test_meta_8da4w(turned: str, tmp_path: Path) -> None:
    program = passed(decoder(), f"{turned}{META},{INTEGERS},pack-weights")
    emitted(program, tmp_path)
    agree(program, tmp_path, PIECES)


def test_going_back_and_beginning_again(tmp_path: Path) -> None:
    program = passed(decoder(), INTEGERS)
    emitted(program, tmp_path)
    runner = XnnpackBackend().open(tmp_path)
    fed(runner, (40,), seed=1)
    assert relative(fed(runner, (3, 1))[-1], fed(ProgramRunner(program), (3, 1))[-1]) < 1e-5
    ids = torch.arange(12)
    runner.reset()
    runner.step(ids[:8])
    first = runner.step(ids[8:])
    runner.rewind(8)  # type: ignore[attr-defined]
    assert torch.equal(runner.step(ids[8:]), first)


@pytest.mark.parametrize(
    ("passes", "why", "fix"),
    [
        (
            "quantize-cache",
            "attention reads the rounded value, and there is a kernel for that only over a cache",
            "put add-kv-cache into the recipe, or leave out quantize-cache",
        ),
        (
            f"quantize-cache{{bits=4}},{CACHED}",
            f"its cache is '{per_head(4)}'; the kernel reads '{per_head(8)}'",
            "use quantize-cache{bits=8}",
        ),
        (
            f"quantize-cache{{queries=false}},{CACHED}",
            "its keys are integers and its queries are not; the kernel multiplies integers with integers",
            "use quantize-cache{queries=true}",
        ),
        (
            f"cast{{dtype=bf16}},{INTEGERS}",
            "its queries are bfloat16; the kernel that rounds them reads float32",
            "leave out quantize-cache",
        ),
    ],
    ids=["no cache", "4 bits", "queries", "bf16"],
)
def test_what_there_is_no_kernel_for(passes: str, why: str, fix: str) -> None:
    found = XnnpackBackend().check(passed(decoder(), passes))
    assert {(r.why, r.fix) for r in found} == {(why, fix)}
    assert all(r.site.startswith("model.layers.") for r in found)
