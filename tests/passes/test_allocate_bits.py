"""allocate-bits: better than uniform at the same bytes, within the budget, over the target's own menu."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import captured

from drawplate.analysis.sites import sites
from drawplate.backends.xnnpack.target import TARGET
from drawplate.calibration import Calibration
from drawplate.encoding import Encoding, QTensor
from drawplate.errors import PassError
from drawplate.menu import size
from drawplate.passbase import Env, Pass
from drawplate.passes import allocate_bits
from drawplate.passes.allocate_bits import AllocateBits
from drawplate.passes.quantize_activations import QuantizeActivations
from drawplate.passes.quantize_embedding import QuantizeEmbedding
from drawplate.passes.quantize_weights import QuantizeWeights
from drawplate.program import Program
from drawplate.rehearsal import rehearse
from drawplate.runner import run_passes

TEXT = Calibration.of(torch.randint(3, 97, (32, 32), generator=torch.Generator().manual_seed(0)), "random")
FRESH = torch.randint(3, 97, (16, 32), generator=torch.Generator().manual_seed(1))
BITS = (2, 3, 4, 5, 6, 8)


def after(program: Program, *passes: Pass) -> Program:
    return run_passes(program, passes, Env(calibration=TEXT)).program


def divergence(program: Program, other: Program) -> float:
    positions = torch.arange(FRESH.shape[1]).expand_as(FRESH)
    a, b = (p.module()(FRESH, positions).log_softmax(-1) for p in (program, other))
    return float((a.exp() * (a - b)).sum(-1).mean())


def stored_bits(program: Program) -> float:
    """Bits per weight of what is stored, scales included."""
    stored = [w for w in program.weights.values() if isinstance(w, QTensor)]
    return 8 * sum(w.nbytes for w in stored) / sum(math.prod(w.shape) for w in stored)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_it_beats_uniform_bits_at_the_same_bytes(name: str) -> None:
    program = captured(name)
    group = (1, 16)
    uniform = after(program, QuantizeEmbedding(4, group), QuantizeWeights("all", 4, group))
    allocated = after(program, AllocateBits("6.0bpw", bits=BITS, group=group, scale="f32"))
    assert stored_bits(uniform) == 6.0
    assert 5.9 < stored_bits(allocated) <= 6.0
    assert divergence(program, allocated) < 0.8 * divergence(program, uniform)


def test_gptq_allocates_by_its_own_errors() -> None:
    program = captured("llama")
    plain, better = (
        after(program, AllocateBits("5.5bpw", bits=BITS, group=(1, 16), scale="f32", method=m))
        for m in ("round", "gptq")
    )  # type: ignore[arg-type]
    assert 5.4 < stored_bits(better) <= 5.5
    assert divergence(program, better) < divergence(program, plain)


def test_linears_that_read_one_value_agree() -> None:
    program = after(captured("llama"), AllocateBits("5.5bpw", bits=BITS, group=(1, 16), scale="f32"))
    values: dict[object, set[str]] = {}
    for site in sites(program):
        if site.role == "linear":
            values.setdefault(site.nodes[0].args[0], set()).add(str(program.encodings[site.name]))
    assert all(len(encodings) == 1 for encodings in values.values())
    assert len(set().union(*values.values())) > 1


def test_the_target_s_menu_is_what_is_chosen_from() -> None:
    program = captured("mistral")
    env = Env(calibration=TEXT, target=TARGET)
    found = run_passes(program, [AllocateBits("55kB")], env).program
    total = sum(w.nbytes for w in found.weights.values()) + TARGET.operator_bytes * len(list(program.nodes()))
    assert 54_000 < total <= 55_000
    for site in sites(found):
        encoding = found.encodings.get(site.name)
        assert encoding is None or any(
            encoding == c.weight or (c.group_multiple and encoding.bits == 4)
            for c in TARGET.menu["linear"] + TARGET.menu["embedding"]
        )


def test_a_table_that_would_be_there_twice_is_counted_twice() -> None:
    program = captured("llama")  # tied; at 4 bits the target's embedding and linear kernels want layouts of their own
    table = next(s for s in sites(program) if s.role == "tied")
    four, eight = (Encoding(bits, (1, -1)) for bits in (4, 8))
    counted = [size(table, encoding, program, TARGET) for encoding in (four, eight)]
    assert counted == [four.nbytes(table.shape) + four.code_bytes(table.shape), eight.nbytes(table.shape)]
    assert size(table, four, program, None) == four.nbytes(table.shape)


def test_the_finalist_that_does_least_harm_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what is measured: here the more the better."""
    program, env = captured("llama"), Env(calibration=TEXT)
    options = AllocateBits("5bpw", bits=BITS, group=(1, 16), scale="f32", tokens=64)
    plain = run_passes(program, [options], env).program.encodings
    assert min(e.bits for e in plain.values()) < 4
    monkeypatch.setattr(allocate_bits, "rises", lambda *_: [2.0, 1.0])
    told = run_passes(program, [replace(options, finalists=2)], env)
    assert told.program.encodings != plain
    assert any("a rise of 1 per token on the calibration text" in line for line in told.told)


def test_what_was_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, record = captured("llama"), tmp_path / "allocation.json"
    env = Env(calibration=TEXT)
    first = run_passes(program, [AllocateBits("5.5bpw", bits=BITS, group=(1, 16), scale="f32")], env)
    next(r for r in first.records if r.name == "allocation").write(record)
    smaller = AllocateBits("5bpw", bits=BITS, group=(1, 16), scale="f32")
    expected = run_passes(program, [smaller], env).program.encodings
    monkeypatch.setattr(allocate_bits, "moves", None)  # nothing is measured any more
    again = replace(smaller, measured=str(record))
    assert run_passes(program, [again], env).program.encodings == expected
    for other in (replace(again, bits=(2, 4, 8)), replace(again, tokens=64), replace(again, method="gptq")):
        with pytest.raises(PassError, match="what was measured is not what would be measured now"):
            run_passes(program, [other], env)
    with pytest.raises(PassError, match="no record of allocate-bits"):
        run_passes(program, [replace(again, measured=str(tmp_path / "none.json"))], env)


def test_a_rehearsal_knows_the_bytes_beforehand() -> None:
    program = captured("llama")
    done = rehearse(program, [AllocateBits("6.0bpw", bits=BITS, group=(1, 16), scale="f32")], Env())
    assert done.program is not None
    assert 5.9 < stored_bits(done.program) <= 6.0


@pytest.mark.parametrize("budget", ["much", "4 bits", "-3MB", "4.5 bpp"])
def test_a_budget_that_is_none_is_refused(budget: str) -> None:
    with pytest.raises(ValueError, match="neither bytes"):
        AllocateBits(budget)


def test_what_is_missing_is_told() -> None:
    program = captured("llama")
    with pytest.raises(PassError, match="there is no menu to choose from"):
        run_passes(program, [AllocateBits("4bpw")], Env(calibration=TEXT))
    with pytest.raises(PassError, match="needs a text"):
        run_passes(program, [AllocateBits("6bpw", bits=(4, 8), group=(1, 16), scale="f32")], Env())
    with pytest.raises(PassError, match="cannot be met") as error:
        run_passes(program, [AllocateBits("2bpw", bits=(4, 8), group=(1, 16), scale="f32")], Env(calibration=TEXT))
    assert "the smallest that the menu allows is 6.0bpw" in str(error.value)
    with pytest.raises(PassError, match="a budget of 20kB cannot be met"):
        run_passes(program, [AllocateBits("20kB")], Env(calibration=TEXT, target=TARGET))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"tokens": -5}, "tokens=-5 is not above 1"),
        ({"spill": -1}, "spill=-1 is below 0"),
        ({"finalists": 0}, "finalists=0 is not above 0"),
        ({"bits": (0,)}, "an encoding of 0 bits: integers have 1 to 16 bits here"),
        ({"bits": (4,), "group": (64,)}, r"group=\(64,\) is not two lengths, along \[out, in\]"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=f"^{why}$"):
        AllocateBits("4bpw", **options)


def test_what_no_entry_fits_stays_and_is_told_unless_nothing_fits() -> None:
    program = captured("llama")  # 48 channels, and 80 between gate and down
    some = run_passes(program, [AllocateBits("30bpw", bits=BITS, group=(1, 5))], Env(calibration=TEXT))
    assert set(some.program.encodings) == {f"model.layers.{i}.mlp.down_proj.weight" for i in range(2)}
    told = [str(r) for r in some.refusals if "stays floating point" in r.why]
    assert "no entry of the menu fits its shape [97, 48]" in told[0]
    with pytest.raises(PassError, match="no weight can be stored") as error:
        run_passes(program, [AllocateBits("6bpw", bits=BITS, group=(1, 7))], Env(calibration=TEXT))
    assert error.value.why == "no entry of the menu fits any shape; the first is [97, 48]"


def test_the_least_budget_that_is_named_is_enough() -> None:
    program, env = captured("mistral"), Env(calibration=TEXT, target=TARGET)
    with pytest.raises(PassError, match="cannot be met") as error:
        run_passes(program, [AllocateBits("20kB")], env)
    least = error.value.fix.split("budget=")[1].split(",")[0]
    assert run_passes(program, [AllocateBits(least)], env).program.encodings


def test_a_rehearsal_claims_no_nats() -> None:
    env = Env()
    rehearse(captured("llama"), [AllocateBits("6.0bpw", bits=BITS, group=(1, 16), scale="f32")], env)
    assert "guessed by bits alone" in env.told[0]
    assert "nats" not in env.told[0]


@pytest.mark.parametrize("way", [run_passes, rehearse])
def test_a_budget_that_floating_point_fits_is_told_so(way: Callable[..., object]) -> None:
    program, env = captured("mistral"), Env(calibration=TEXT, target=TARGET)
    with pytest.raises(PassError) as error:
        way(program, [AllocateBits("100bpw"), QuantizeActivations()], env)
    assert "a budget of 100bpw stores no linear as integers" in error.value.what
    taken = r"[\d,]+ of [\d,]+ bytes, 32.000 bits per weight \(68.0 % is left: every weight is the best .*\)"
    assert re.fullmatch(f"floating point does least harm, and it fits: {taken}", error.value.why)
    assert error.value.fix == "use a recipe of floating point, such as 'fp32' or 'bf16', or give a smaller budget"
