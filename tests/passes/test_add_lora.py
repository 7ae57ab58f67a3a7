"""add-lora: the same function until B is trained, and then W x + scale * B (A x)."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import pytest
import torch
from architectures import captured
from passkit import MLP, WIDTHS

from drawplate.analysis.adapters import adapters
from drawplate.analysis.blocks import blocks
from drawplate.analysis.sites import sites
from drawplate.errors import PassError
from drawplate.passbase import Env
from drawplate.passes.add_lora import AddLora
from drawplate.passes.cast import Cast
from drawplate.passes.merge_linears import MergeLinears
from drawplate.passes.quantize_activations import QuantizeActivations
from drawplate.passes.quantize_weights import QuantizeWeights
from drawplate.rehearsal import rehearse
from drawplate.roofline import bytes_moved
from drawplate.runner import run_passes
from drawplate.testing import check_pass
from drawplate.text import parse_program

ENCODE = torch.ops.drawplate.encode.default


def test_beside_each_linear_but_the_head() -> None:
    program = check_pass(AddLora(4), MLP).program
    made = {n: tuple(w.shape) for n, w in program.weights.items() if "lora" in n}
    assert made == {
        "gate.lora_A.weight": (4, 64),
        "gate.lora_B.weight": (96, 4),
        "up.lora_A.weight": (4, 64),
        "up.lora_B.weight": (96, 4),
        "down.lora_A.weight": (4, 96),
        "down.lora_B.weight": (64, 4),
    }
    for name in made:
        assert bool(program.weights[name].any()) == ("lora_A" in name)  # type: ignore[union-attr]
    assert program.weights["gate.lora_A.weight"].abs().max() <= 1 / 8  # type: ignore[union-attr]


def test_trained_it_is_the_product_of_the_paper() -> None:
    plain = parse_program(WIDTHS)
    program = check_pass(AddLora(4, 0.5), WIDTHS).program
    random = torch.Generator().manual_seed(1)
    trained = {n: torch.randn(w.shape, generator=random) for n, w in program.weights.items() if "lora" in n}
    program = replace(program, weights=MappingProxyType({**program.weights, **trained}))
    merged = dict(plain.weights)
    for name in ("first", "second"):
        merged[name] = plain.weights[name] + 0.5 * trained[f"{name}.lora_B.weight"] @ trained[f"{name}.lora_A.weight"]  # type: ignore[operator]
    x = torch.randn(3, 64, generator=random)
    wanted = replace(plain, weights=MappingProxyType(merged)).module()(x)
    torch.testing.assert_close(program.module()(x), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2"])
def test_it_reads_what_is_in_front_of_the_rounding_and_merges(name: str) -> None:
    passes = [QuantizeWeights("body", 4, (1, 16)), QuantizeActivations(), AddLora(2), MergeLinears()]
    program = captured(name)
    after = run_passes(program, passes, Env()).program
    for node in after.nodes(torch.ops.aten.linear.default):
        if "lora" in str(node.args[1]):
            assert node.args[0].target is not ENCODE  # type: ignore[union-attr]
    downs = [s for s in sites(after) if s.name.endswith("lora_A.weight")]
    assert max(s.shape[0] for s in downs) == 6  # query, key and value read one value, and so do their A
    rehearsed = rehearse(program, passes, Env()).program
    assert str(rehearsed) == str(after)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_kept_in_bf16_they_are_read_as_they_are_and_merge(name: str) -> None:
    passes = [QuantizeWeights("body", 4, (1, 16)), QuantizeActivations(), AddLora(2, dtype="bf16")]
    after = run_passes(captured(name), passes, Env()).program
    kept = {a.down: after.weights[a.down] for a in adapters(after)}
    assert {w.dtype for w in kept.values()} == {torch.bfloat16}  # type: ignore[union-attr]
    assert all("lora" in n for block in blocks(after) for n in block.weights if n in kept)
    assert sum(n in kept for block in blocks(after) for n in block.weights) == len(kept) == 14
    merged = run_passes(captured(name), [*passes, MergeLinears()], Env()).program
    assert str(rehearse(captured(name), [*passes, MergeLinears()], Env()).program) == str(merged)
    downs = [w for n, w in merged.weights.items() if "lora_A" in n]
    assert max(w.shape[0] for w in downs) == 6
    assert sum(w.nbytes for w in downs) == sum(w.nbytes for w in kept.values())
    assert bytes_moved(merged) < bytes_moved(run_passes(captured(name), [*passes[:2], AddLora(2)], Env()).program)


def test_a_dtype_that_is_no_narrower_than_the_model_s_is_the_model_s() -> None:
    after = run_passes(captured("llama"), [Cast("bf16"), AddLora(2, dtype="f32")], Env()).program
    assert {after.weights[a.up].dtype for a in adapters(after)} == {torch.bfloat16}  # type: ignore[union-attr]
    assert "aten.to.dtype(@model.layers" not in str(after)


def test_one_seed_one_result() -> None:
    first, same, other = (AddLora(4).run(parse_program(WIDTHS), Env(seed=s)).weights for s in (3, 3, 4))
    name = "first.lora_A.weight"
    assert torch.equal(first[name], same[name])  # type: ignore[arg-type]
    assert not torch.equal(first[name], other[name])  # type: ignore[arg-type]


def test_a_rank_that_is_not_low_is_refused() -> None:
    refusals = check_pass(AddLora(64), WIDTHS).refusals
    assert [str(r.site) for r in refusals] == ["first", "second"]
    assert refusals[0].why == "its weight is [48, 64]: a product of rank 64 beside it would not be low-rank"


@pytest.mark.parametrize(("options", "why"), [({"rank": 0}, "rank=0 is"), ({"scale": 0.0}, "scale=0.0 is")])
def test_options_that_cannot_be_are_refused(options: dict[str, float], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        AddLora(**options)  # type: ignore[arg-type]


def test_once_is_enough() -> None:
    with pytest.raises(PassError, match="there are low-rank products beside linears already"):
        AddLora(2).run(AddLora(3).run(captured("llama"), Env()), Env())
